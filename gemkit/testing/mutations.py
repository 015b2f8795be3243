"""Mutated configs and command lines, made from the schema itself: what a user may mistype, and what nobody should type.

The schema is the config dataclasses of every section and every registered component, with their types, bounds and
choices, and argparse's own subcommands and options. What a plugin adds is mutated too.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import random
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from gemkit.cli.main import build_parser
from gemkit.component import KINDS
from gemkit.config.build import CORE, SECTIONS
from gemkit.registry import Registry
from gemkit.testing.mutated_files import broken_files
from gemkit.testing.mutated_values import VALUES, Target, literal, misspelt

PAYLOAD = "payload-was-run"
"""File that the malicious mutations would make in the folder if any of their code ran."""

COMMAND = f"touch {{folder}}/{PAYLOAD}"


class Mutation(NamedTuple):
    """One command line that something is wrong with, maybe.

    In `argv` and `files`, ``{folder}`` stands for an empty folder of this mutation's own, ``{run}`` for a run folder,
    ``{log}`` for a teacher log.

    Attributes:
        kind: Class of the mutation.
        target: The dotted field, or the word, that it hits.
        files: Path below the folder -> content.
        names: Any of these in an error message names what was hit.
        refused: Whether it must be an error; else it may be a valid run.
    """

    kind: str
    target: str
    argv: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...] = ()
    names: tuple[str, ...] = ()
    refused: bool = False


class Mutations:
    """The generator.

    Args:
        words: A command line that is a valid run; mutations come after it.
        saved: The plain values of a saved run.
        seed: The same seed gives the same mutations.
    """

    def __init__(self, registry: Registry, words: Sequence[str], saved: Mapping[str, Any], seed: int) -> None:
        self.registry, self.words, self.saved = registry, tuple(words), saved
        self.rng = random.Random(seed)
        self.targets = list(targets(registry))

    def take(self, count: int) -> list[Mutation]:
        """`count` different mutations, of all classes in turn."""
        found: dict[tuple[Any, ...], Mutation] = {}
        makers = self.makers()
        for turn in range(50 * count):
            if len(found) == count:
                break
            mutation = makers[turn % len(makers)]()
            found.setdefault((mutation.argv, mutation.files), mutation)
        return list(found.values())

    def makers(self) -> list[Callable[[], Mutation]]:
        """One for each class."""
        values = [functools.partial(self._value, kind, make) for kind, make in VALUES.items()]
        return [
            *values,
            self.misspelt_key,
            self.misspelt_section,
            self.misspelt_component,
            self.pathlike_component,
            self.dropped,
            self.misspelt_command,
            self.option,
            self.special,
            self.combination,
            self.broken_yaml,
            self.broken_saved,
        ]

    def _value(self, kind: str, make: Callable[[random.Random, Target], tuple[Any, bool] | None]) -> Mutation:
        """A field set to a value: on the command line, in a YAML file, or in a saved config."""
        while True:
            target = self.rng.choice(self.targets)
            made = make(self.rng, target)
            if made is not None:
                break
        value, refused = made
        form = self.rng.choice(("word", "word", "file", "saved"))
        chosen = {word.partition("=")[0]: word.partition("=")[2] for word in target.words}
        of_saved = self.saved[target.section]
        if (
            form == "saved"
            and isinstance(of_saved, dict)
            and chosen.get(target.section) in (None, of_saved.get("name"))
        ):
            section = of_saved | {target.field.name: value}
            return self._saved(kind, target.key, {**self.saved, target.section: section}, (target.key,), refused)
        # Data code knows no section: its errors say `where: tasks`.
        names = (target.key, f"where:   {target.field.name}\n") if target.section == "data" else (target.key,)
        given = any(word.startswith(f"{target.key}=") for word in self.words)
        if form == "file" and target.section not in chosen and not given:
            # The values of a section count if the file makes the same choice for it as the command line.
            choices = [
                {f"override /{k}": v} for k, _, v in (w.partition("=") for w in self.words) if k == target.section
            ]
            values = {"defaults": choices, target.section: {target.field.name: value}}
            text = "# @package _global_\n" + yaml.safe_dump(values, sort_keys=False)
            return self._file(kind, target.key, "experiment", text, names, refused)
        return self._words(kind, target.key, (*target.words, f"{target.key}={literal(value)}"), names, refused)

    def _words(
        self, kind: str, target: str, words: Sequence[str], names: Sequence[str], refused: bool = True
    ) -> Mutation:
        return Mutation(kind, target, ("config", *self.words, *words), (), tuple(names), refused)

    def _file(
        self, kind: str, target: str, group: str, text: str | bytes, names: Sequence[str], refused: bool = True
    ) -> Mutation:
        data = text.encode() if isinstance(text, str) else text
        argv = ("config", "--config-dir", "{folder}", *self.words, f"{group}=mutated")
        return Mutation(kind, target, argv, ((f"{group}/mutated.yaml", data),), tuple(names), refused)

    def _saved(self, kind: str, target: str, values: Any, names: Sequence[str], refused: bool = True) -> Mutation:
        data = values if isinstance(values, bytes) else yaml.safe_dump(values, sort_keys=False).encode()
        # A resumed run that is not refused would train on; evaluating reads the same file.
        resume = refused and self.rng.random() < 0.5
        argv = ("train", "--resume", "{folder}/run") if resume else ("evaluate", "{folder}/run")
        return Mutation(f"saved: {kind}", target, argv, (("run/config.yaml", data),), tuple(names), refused)

    # --- names ----------------------------------------------------------------------------------------------

    def misspelt_key(self) -> Mutation:
        target = self.rng.choice(self.targets)
        wrong = f"{target.section}.{misspelt(self.rng, target.field.name)}"
        known = {t.key for t in self.targets if t.words == target.words and t.section == target.section}
        known |= {f"{target.section}.name"}
        if self.rng.random() < 0.3 and not target.words and isinstance(self.saved[target.section], dict):
            section = self.saved[target.section] | {wrong.partition(".")[2]: 1}
            return self._saved(
                "misspelt key", wrong, {**self.saved, target.section: section}, (wrong,), wrong not in known
            )
        return self._words("misspelt key", wrong, (*target.words, f"{wrong}=1"), (wrong,), wrong not in known)

    def misspelt_section(self) -> Mutation:
        target = self.rng.choice(self.targets)
        section = misspelt(self.rng, target.section)
        word = self.rng.choice((f"{section}.{target.field.name}=1", f"{section}=x"))
        if self.rng.random() < 0.3:
            return self._saved("misspelt section", section, {**self.saved, section: {}}, (section,))
        if self.rng.random() < 0.3:
            text = "# @package _global_\n" + yaml.safe_dump({section: {target.field.name: 1}})
            return self._file("misspelt section", section, "experiment", text, (section,))
        return self._words("misspelt section", section, (word,), (section,))

    def misspelt_component(self) -> Mutation:
        spec = self.rng.choice(self.registry.specs())
        wrong = misspelt(self.rng, spec.name)
        form = self.rng.randrange(3)
        if form == 0:
            return self._words("misspelt component", wrong, (f"{spec.kind}={wrong}",), (wrong,))
        if form == 1:
            return self._saved("misspelt component", wrong, {**self.saved, spec.kind: {"name": wrong}}, (wrong,))
        return Mutation("misspelt component", wrong, ("components", f"{spec.kind}/{wrong}"), (), (wrong,), True)

    def pathlike_component(self) -> Mutation:
        """Names that some other program would import, open or run."""
        kind = self.rng.choice((*KINDS, "size", "experiment", "ablation"))
        name = self.rng.choice(
            (
                "../../evil",
                "/etc/passwd",
                "os.system",
                "gemkit.cli.main:main",
                "file:///etc/passwd",
                "pkg://os",
                "..",
                "a/b",
            )
        )
        form = self.rng.randrange(3) if kind in KINDS else 0
        if form == 1:
            return self._saved("path-like name", name, {**self.saved, kind: {"name": name}}, (name,))
        if form == 2:
            return self._words("path-like name", name, (f"{kind}.name={literal(name)}",), (name, f"{kind}.name"))
        return self._words("path-like name", name, (f"{kind}={literal(name)}",), (name,))

    def dropped(self) -> Mutation:
        """A key that is not there: from a saved config, from the command line's config, or a whole section."""
        target = self.rng.choice(self.targets)
        of_saved = self.saved[target.section]
        form = self.rng.randrange(3)
        if form == 0:
            section = self.rng.choice(SECTIONS)
            values = {k: v for k, v in self.saved.items() if k != section}
            return self._saved("dropped", section, values, (section,), section not in CORE)
        if form == 1 and isinstance(of_saved, dict) and not target.words:
            rest = {k: v for k, v in of_saved.items() if k != target.field.name}
            return self._saved("dropped", target.key, {**self.saved, target.section: rest}, (target.key,), False)
        # A deleted key falls back to its default, unless it is not there; deleting what is needed is an error.
        names = (target.key, f"where:   {target.field.name}\n")
        return self._words("dropped", target.key, (*target.words, f"~{target.key}"), names, False)

    # --- the command line -----------------------------------------------------------------------------------

    def misspelt_command(self) -> Mutation:
        path = self.rng.choice([path for path, _ in commands() if path])
        wrong = misspelt(self.rng, path[-1])
        return Mutation("misspelt command", wrong, (*path[:-1], wrong, *REST.get(path, ())), (), (wrong,), True)

    def option(self) -> Mutation:
        path, parser = self.rng.choice(list(commands()))
        options = [o for a in parser._actions for o in a.option_strings if o.startswith("--")]
        option, form = self.rng.choice(options), self.rng.randrange(4)
        if form == 0:
            wrong = "--" + misspelt(self.rng, option[2:])
            return Mutation("misspelt option", wrong, (*path, wrong, *REST.get(path, ())), (), (wrong,), True)
        if form == 1:
            word = self.rng.choice(("extra", "-x", "--", "-1"))
            argv = (*(path or ("components",)), *REST.get(path, ("interaction",)), "--again-and-again", word)
            return Mutation("surplus option", "--again-and-again", argv, (), ("--again-and-again",), True)
        folder = self.rng.choice(("{folder}/nowhere", "{folder}/file", "/dev/null", "/private/\0", "x" * 5000, ""))
        argv = ("config", *self.words, "--config-dir") + ((folder,) if form == 2 else ())
        return Mutation(
            "option value", "--config-dir", argv, (("file", b"text"),), ("--config-dir", "config_dir"), True
        )

    def special(self) -> Mutation:
        """What Hydra or OmegaConf would give a meaning to."""
        kind = self.rng.choice(tuple(KINDS))
        name = self.rng.choice(self.registry.names(kind))
        target = self.rng.choice(self.targets)
        word, named = self.rng.choice(
            (
                ("hydra.searchpath=[pkg://os]", "hydra.searchpath"),
                ("hydra.run.dir={folder}", "hydra.run.dir"),
                ("hydra/launcher=basic", "hydra/launcher"),
                ("+x=1", "x"),
                ("++x.y=1", "x.y"),
                (f"~{kind}", kind),
                (f"{kind}={name},{name}", kind),
                (f"{kind}=glob(*)", kind),
                (f"{kind}@other={name}", f"{kind}@other"),
                (f"{target.key}=1,2", target.key),
                (f"{target.key}=choice(1,2)", target.key),
                (f"{target.key}=range(1,3)", target.key),
                (f"{kind}._target_=os.system", f"{kind}._target_"),
                (f"+{kind}._target_=os.system", f"{kind}._target_"),
                (f"{target.key}={{_target_: os.system}}", target.key),
                (f"{kind}={{name: {name}}}", kind),
                (f"{kind}=[{name}]", kind),
                (f"{target.key}=${{oc.env:HOME}}", target.key),
                (f"{target.key}='${{now:%Y}}'", target.key),
                (f"{target.key}=${{oc.decode:'1'}}", target.key),
                (f"{target.key}=${{hydra:runtime.cwd}}", target.key),
                (f"{target.key}={'[' * 400}", target.key),
                (f"{target.key}={'9' * 5000}", target.key),
                (f"{target.key}={'x' * 20_000}", target.key),
                (f"{target.section}[{target.field.name}]=nonsense", target.section),
                (f"{target.section}..{target.field.name}=1", target.section),
                (f"{target.key}.deeper=1", target.key),
                (f"{target.section}=3", target.section),
                ("=1", "=1"),
                ("train.epochs", "train.epochs"),
                ("train.epochs==3", "train.epochs"),
                ("'train.epochs'=3", "train.epochs"),
                ("\u202einteraction=x", "interaction=x"),
                ("\x1b[31mx=1", "x=1"),
            )
        )
        return self._words("special word", named, (*target.words, word), (named,))

    def combination(self) -> Mutation:
        """Values that are fine one by one."""
        dim = self.rng.choice((4, 6, 10, 14, 18, 22, 26))
        words, names, refused = self.rng.choice(
            (
                (
                    (f"size.dim={dim}", "sequence=pyramid", f"sequence.num_heads={dim - 1}"),
                    ("sequence.num_heads",),
                    True,
                ),
                (("size.dim=15", "sequence=pyramid"), ("sequence.num_heads",), True),
                ((f"size.dim={dim}", "sequence=none", "cross=none"), ("size.dim",), False),
                ((f"size.dim={dim}", f"cross.gdpa_heads={dim - 1}", "cross.pffn=gdpa"), ("cross.gdpa_heads",), True),
                (("cross=interformer", "sequence=none"), ("cross=interformer",), True),
                (("cross.flow=s2n", "sequence=none"), ("cross.flow",), True),
                (("sequence=none",), ("sequence",), False),
                ((f"ablation={self.rng.choice(('no_sequence', 'no_cross', 'no_history'))}",), ("ablation",), False),
                (("sequence=none", "cross=none", "sequence.num_heads=1"), ("sequence.num_heads",), True),
                ((f"train.batch_size={dim}", f"train.accumulate={dim - 1}"), ("train.accumulate",), True),
                ((f"size.num_tokens={dim}", f"interaction.num_fm_tokens={dim}"), ("interaction.num_fm_tokens",), True),
                (("size.num_tokens=1",), ("size.num_tokens",), True),
                (("size.num_tokens=4096", "size.dim=16384", "interaction.rank=4096"), ("size.dim",), True),
                (("size.dim=16384", "head.hidden=[2000000000]"), ("head.hidden",), True),
                (("transfer=distill",), ("transfer.log",), True),
                (("transfer=distill", "transfer.log={folder}/nothing"), ("nothing", "transfer.log"), False),
                (("transfer=[distill,nothing]", "transfer.log={log}"), ("nothing", "transfer"), True),
                ((f"runs={{folder}}/file/{dim}",), ("runs", "file"), False),
            )
        )
        return self._words("combination", words[-1].partition("=")[0], words, names, refused)._replace(
            files=(("file", b"text"),)
        )

    def broken_yaml(self) -> Mutation:
        group = self.rng.choice(("experiment", "ablation", "interaction", "sequence", "size", "optimizer"))
        if group in ("experiment", "ablation"):
            valid = "# @package _global_\noptimizer:\n  lr: 0.01\n  weight_decay: 0.1\n"
        else:
            valid = yaml.safe_dump(self.saved[group], sort_keys=False)
        kind, data, key, refused = self.rng.choice(broken_files(self.rng, valid, COMMAND))
        names = ("mutated.yaml", f"{group}/mutated", key)
        made = self._file(f"YAML: {kind}", f"{group}/mutated.yaml", group, data, names, refused)
        # What the command line sets itself would hide what the file says.
        return made._replace(argv=tuple(w for w in made.argv if not w.startswith(f"{group}.")))

    def broken_saved(self) -> Mutation:
        text = yaml.safe_dump(dict(self.saved), sort_keys=False)
        kind, data, key, refused = self.rng.choice(broken_files(self.rng, text, COMMAND))
        # A header is a comment like any other there.
        refused = refused and not kind.startswith("header")
        return self._saved(f"YAML: {kind}", "run/config.yaml", data, ("config.yaml", key), refused)


REST: dict[tuple[str, ...], tuple[str, ...]] = {
    ("evaluate",): ("{folder}",),
    ("predict",): ("{folder}", "--input", "x.csv", "--output", "y.csv"),
    ("teach",): ("{folder}", "--log", "log"),
    ("transfer",): ("graph.yaml",),
    ("cycle",): ("cycle.yaml",),
    ("inspect",): ("{folder}",),
    ("data",): ("inspect", "table"),
    ("data", "fetch"): ("table",),
    ("data", "build"): ("table",),
    ("data", "inspect"): ("table",),
}
"""What a subcommand wants beside options."""


def targets(registry: Registry) -> Iterator[Target]:
    """Every field of every section and of every component, but `name`."""
    for section, config in CORE.items():
        hints = typing.get_type_hints(config)
        yield from (Target(section, (), field, hints[field.name]) for field in dataclasses.fields(config))
    for spec in registry.specs():
        hints = typing.get_type_hints(spec.config)
        words: tuple[str, ...] = (f"{spec.kind}={spec.name}",)
        if spec.kind == "data":
            words = () if spec.name == "table" else words
        if spec.kind == "transfer":
            fields = [f.name for f in dataclasses.fields(spec.config)]
            words = (*words, "transfer.log={log}") if "log" in fields else (*words, "transfer.teacher={run}")
            words = (*words, "transfer.parts={distill: {}}") if "parts" in fields else words
        for field in dataclasses.fields(spec.config):
            if field.name != "name":
                yield Target(spec.kind, words, field, hints[field.name])


def commands(
    parser: argparse.ArgumentParser | None = None, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every subcommand with its parser, the program itself included."""
    parser = parser or build_parser()
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from commands(inner, (*path, name))
