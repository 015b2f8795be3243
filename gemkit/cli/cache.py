"""`gemkit cache info | pack | unpack | clear`: what torch.compile and Triton have compiled."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gemkit.errors import GemkitError


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the subcommand and its actions."""
    parser = commands.add_parser("cache", parents=[common], help="compiled code: where it is, and moving it elsewhere")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=type(parser))
    for name, action, text in (
        ("info", info, "where compiled code is kept, and how much"),
        ("pack", pack, "write this environment's compiled code into one file"),
        ("unpack", unpack, "put such a file's code where runs look for it; it will be run: only from people you trust"),
        ("clear", clear, "remove all compiled code; not while a run uses it"),
    ):
        example = "compiled.zip --sha256 HASH" if name == "unpack" else "compiled.zip" if name == "pack" else ""
        sub = actions.add_parser(name, parents=[common], help=text, epilog=f"gemkit cache {name} {example}".strip())
        sub.set_defaults(run=action, command=f"cache {name}")
        sub.add_argument(
            "--folder", type=Path, metavar="FOLDER", help="the runs' train.compile_cache (default: the user's)"
        )
        if name in ("pack", "unpack"):
            sub.add_argument("file", type=Path, metavar="FILE", help="the archive")
        if name == "unpack":
            sub.add_argument("--sha256", metavar="HASH", help="unpack it if this is its sha256, as `pack` printed it")
            sub.add_argument(
                "--trust", action="store_true", help="unpack it whatever its sha256: you know who packed it"
            )
            sub.add_argument(
                "--foreign", action="store_true", help="also if it is for another environment, which alone will use it"
            )
        if name == "info":
            sub.add_argument("--json", action="store_true", help="print plain data")


def info(args: argparse.Namespace) -> int:
    """Prints what is kept."""
    import json

    from gemkit.compilation.place import compiled_folder, environment
    from gemkit.compilation.stored import contents

    own = compiled_folder(args.folder)
    rows = contents(own)
    if args.json:
        folders = [row._asdict() | {"folder": str(row.folder)} for row in rows]
        print(json.dumps({"folder": str(own), "environment": environment(), "kept": folders}, indent=2))
        return 0
    print(f"compiled code is kept in {own}")
    for name, value in environment().items():
        print(f"  {name:14}{value}")
    for row in rows:
        whose = "this environment" if row.folder == own else "another environment"
        print(f"{row.folder.name}  {row.graphs:,} graphs, {row.files:,} files, {row.bytes:,} bytes: {whose}")
    if not rows:
        print("nothing is there yet: train with train.compile=true")
    return 0


def pack(args: argparse.Namespace) -> int:
    """Writes an archive and prints its sha256."""
    from gemkit.compilation.archive import pack
    from gemkit.compilation.place import compiled_folder

    sha256 = pack(compiled_folder(args.folder), args.file)
    print(f"{args.file}: {args.file.stat().st_size:,} bytes")
    print(f"elsewhere: gemkit cache unpack {args.file.name} --sha256 {sha256}")
    return 0


def unpack(args: argparse.Namespace) -> int:
    """Unpacks an archive."""
    from gemkit.compilation.archive import Archive
    from gemkit.compilation.place import compiled_folder, differences, environment, named_folder

    if args.sha256 is None and not args.trust:
        raise GemkitError(
            "an archive of compiled code is a program, which every later run with train.compile=true will run",
            where=str(args.file),
            allowed="archives of people you trust",
            fix="give the --sha256 that `gemkit cache pack` printed, or --trust",
        )
    folder, named = compiled_folder(args.folder), named_folder()
    with Archive(args.file, args.sha256) as archive:
        if (facts := archive.manifest.environment) != environment():
            if named or not args.foreign:
                raise GemkitError(
                    "the archive is for another environment",
                    where=str(args.file),
                    allowed=differences(facts, environment()),
                    fix="pack it on a machine like this one"
                    + ("" if named else ", or --foreign, to keep it for machines of its own kind"),
                )
            folder = folder.parent / archive.manifest.key
        new, kept = archive.unpack(folder)
    print(f"{new:,} files are new in {folder}" + (f", {kept:,} were there" if kept else ""))
    return 0


def clear(args: argparse.Namespace) -> int:
    """Removes what is kept."""
    from gemkit.compilation.place import compiled_folder, named_folder
    from gemkit.compilation.stored import remove

    if named := named_folder():
        raise GemkitError(
            f"TORCHINDUCTOR_CACHE_DIR names {named}, which may hold other things too",
            where="environment",
            fix="remove it yourself, or unset the variable",
        )
    print(f"{remove(compiled_folder(args.folder)):,} bytes are free")
    return 0
