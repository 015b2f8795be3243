"""What codes a teacher of a graph or a cycle leaves for its students."""

from __future__ import annotations

import dataclasses

from gemkit.config.fields import Config, option
from gemkit.errors import GemkitError
from gemkit.transfer.codes import BITS, KEEPS, Coding

DEFAULT_WIDTH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodingConfig(Config):
    """What a teacher leaves beside its predictions."""

    codes: int | None = option(
        None,
        f"Numbers in the codes that it leaves for its students; null: none, or {DEFAULT_WIDTH} where one reads them.",
        ge=1,
    )
    code_bits: int = option(8, "Of each number of a code: 4, 8 or 32.")
    codes_of: str = option(
        "example",
        "What codes keep: as much as they can of an example, or what a user's examples share.",
        choices=KEEPS,
    )

    def check(self) -> None:
        if self.code_bits not in BITS:
            raise GemkitError(f"code_bits = {self.code_bits}", where="code_bits", allowed=", ".join(map(str, BITS)))

    def coding(self, read: bool) -> Coding | None:
        """The codes; None: none.

        Args:
            read: Whether a student reads codes.
        """
        width = self.codes or (DEFAULT_WIDTH if read else None)
        return None if width is None else Coding(width, self.code_bits, self.codes_of)


def log_name(coding: Coding | None) -> str:
    """The folder of a log with such codes: `log`, `log-32x8`, `log-32x8-user`."""
    if coding is None:
        return "log"
    return f"log-{coding.width}x{coding.bits}" + ("" if coding.of == KEEPS[0] else f"-{coding.of}")
