"""What a run needs besides the named blocks, and the published alternatives to them."""

from __future__ import annotations

from gemkit.hookspecs import hookimpl


@hookimpl
def gemkit_components() -> list[type]:
    from gemkit_baselines import domain, heads, interaction, sequence
    from gemkit_baselines.tokenizer import PlainTokenizer

    return [
        PlainTokenizer,
        *interaction.components(),
        *sequence.components(),
        *domain.components(),
        *heads.components(),
    ]
