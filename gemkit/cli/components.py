"""`gemkit components`: what is installed, and what each component can be told."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemkit.component import ComponentSpec
    from gemkit.registry import Registry


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "components",
        parents=[common],
        help="list components, or show the fields of one, or of a section of every run",
        epilog="gemkit components interaction/wukong; gemkit components train",
    )
    parser.add_argument(
        "what", nargs="?", default="", metavar="KIND[/NAME]", help="a kind, one component, or train, size, ..."
    )
    parser.set_defaults(run=run, command="components")


def run(args: argparse.Namespace) -> int:
    """Prints a table, one component, or one section."""
    from gemkit.config.build import CORE
    from gemkit.registry import load_registry

    registry = load_registry()
    kind, _, name = args.what.partition("/")
    if args.what in CORE:
        print(describe_section(args.what), end="")
    elif name:
        print(describe(registry, registry.get(kind, name)), end="")
    else:
        print_table(registry, kind or None)
    return 0


def print_table(registry: Registry, kind: str | None = None) -> None:
    """All components, of one kind or of all, and below them the plugins that failed to load."""
    from gemkit.component import KINDS, OPTIONAL_KINDS
    from gemkit.config.build import CORE

    rows = [("kind", "name", "plugin", "version", "paper", "summary")]
    for spec in registry.specs(kind):
        plugin, _, version = registry.plugin_of(spec.kind, spec.name)
        rows.append((spec.kind, spec.name, plugin, version, spec.paper or "-", spec.summary))
    _print_rows(rows)
    optional = [k for k in ([kind] if kind else KINDS) if k in OPTIONAL_KINDS]
    print(f"\n<kind>=none leaves out: {', '.join(optional)}" if optional else "")
    print("gemkit components KIND/NAME shows the fields of one")
    if kind is None:
        print(f"gemkit components {'|'.join(CORE)} shows those that every run has")
    for name, failure in registry.failures.items():
        print(f"\nplugin {name} ({failure.distribution} {failure.version}) failed to load:")
        print(_indent(failure.traceback))


def _print_rows(rows: Sequence[tuple[str, ...]]) -> None:
    """Folded to a terminal's width; elsewhere one line a row, whatever its width."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    if console.is_terminal:
        table = Table(*rows[0], box=None, header_style="bold", pad_edge=False)
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
        return
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def describe(registry: Registry, spec: ComponentSpec) -> str:
    """One component: where it comes from, its docstring, and each field with type, bounds, default and doc."""
    plugin, distribution, version = registry.plugin_of(spec.kind, spec.name)
    fields = _field_lines(spec.config, f"{spec.kind}.", hidden="name")
    lines = [
        f"{spec.kind}/{spec.name}",
        f"  {spec.cls.__module__}.{spec.cls.__qualname__}, plugin {plugin} ({distribution} {version})",
        "",
        _indent(spec.doc),
        "",
        "fields" if fields else "no fields",
        *(f"  {line}" for line in fields),
    ]
    return "\n".join(lines) + "\n"


def describe_section(name: str) -> str:
    """A section that is no component: its docstring, and each field as of components."""
    from gemkit.config.build import CORE

    config = CORE[name]
    lines = [name, _indent(config.__doc__ or ""), "", "fields"]
    return "\n".join([*lines, *(f"  {line}" for line in _field_lines(config, f"{name}."))]) + "\n"


def _field_lines(config: type, prefix: str, hidden: str | None = None) -> list[str]:
    """Each field with its default, type, bounds and doc; those of a nested config below it."""
    from gemkit.config.fields import bounds_text, type_name

    hints = typing.get_type_hints(config)
    lines = []
    for field in dataclasses.fields(config):
        if field.name == hidden:
            continue
        bounds = bounds_text(field)
        kind = type_name(hints[field.name]) + (f", {bounds}" if bounds else "")
        lines.append(f"{prefix}{field.name} = {_default(field)}    {kind}")
        if field.metadata.get("doc"):
            lines.append(f"    {field.metadata['doc']}")
        for inner in (hints[field.name], *typing.get_args(hints[field.name])):
            if dataclasses.is_dataclass(inner) and isinstance(inner, type):
                lines += [f"    {line}" for line in _field_lines(inner, f"{inner.__name__}.")]
    return lines


def _default(field: dataclasses.Field[Any]) -> str:
    import json

    from gemkit.config.fields import to_mapping

    if field.default is not dataclasses.MISSING:
        return json.dumps(to_mapping(field.default))
    if field.default_factory is not dataclasses.MISSING:
        return json.dumps(to_mapping(field.default_factory()))
    return "(must be given)"


def _indent(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.strip().splitlines())
