"""What the pages say is so: links, file names, keys, tables, and the YAML files in configs/."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import PAGES, ROOT, anchors, blocks, code_spans, links, name_of, prose, table_rows

import gemkit
from gemkit.component import KINDS, OPTIONAL_KINDS
from gemkit.config.build import CORE
from gemkit.config.compose import GROUPS, PATCHES, compose, load_run_config, to_yaml
from gemkit.config.ladder import ladders_in
from gemkit.config.study import studies_in
from gemkit.data.schema import Schema, Task
from gemkit.metrics.streaming import StreamingMetrics
from gemkit.registry import load_registry
from gemkit.testing.runs import silent, tiny_run
from gemkit.train import train

FOLDERS = ("gemkit", "plugins", "kernels", "configs", "tests", "docs", "examples", "benchmarks", "constraints", ".ci")
"""A code span that begins with one of them and a slash is a path of the repository."""

SEVERAL_RUNS = [*studies_in([ROOT / "configs"]).values(), *ladders_in([ROOT / "configs"]).values()]
"""Studies and ladders; tests/core/test_config.py and tests/core/test_scale_run.py compose them."""

CONFIGS = [file for file in sorted((ROOT / "configs").rglob("*.yaml")) if file not in SEVERAL_RUNS]
README = ROOT / "README.md"
ARXIV = re.compile(r"\d{4}\.\d{5}")


def test_links_lead_somewhere() -> None:
    seen = 0
    for page in PAGES:
        for link in links(page):
            if link.startswith("https://"):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{name_of(page)} links to {link}"
            assert not anchor or anchor in anchors(target), f"{name_of(page)} links to {link}"
            seen += 1
    assert seen > 40


def test_lines_are_short() -> None:
    long = [
        f"{name_of(page)}: {line[:60]}"
        for page in PAGES
        for line in re.sub(r"<!-- .*?<!-- end -->", "", prose(page), flags=re.DOTALL).splitlines()  # but what is made
        if len(line) > 120 and not line.startswith("|")
    ]
    assert not long, f"longer than 120 characters: {long}"


def test_words_with_brackets_are_quoted() -> None:
    """A shell would take `data.train_days=[0,7]` for a pattern, or `[a, b]` for two words."""
    seen, bare = 0, []
    for page in PAGES:
        for block in blocks(page):
            for line in block.text.splitlines() if block.language == "bash" else ():
                for word in re.findall(r"(?:^|\s)(\S*=\[\S*)", line):
                    seen += 1
                    if word[0] not in "'\"":
                        bare.append(f"{name_of(page)}: {word}")
    assert seen > 10 and not bare, bare


def test_files_that_are_named_are_there() -> None:
    seen = 0
    for page in PAGES:
        for span in code_spans(page):
            if span.startswith(tuple(f"{folder}/" for folder in FOLDERS)) and re.fullmatch(r"[\w./*-]+", span):
                assert list(ROOT.glob(span.rstrip("/"))), f"{name_of(page)} names {span}"
                seen += 1
    assert seen > 50


def known_keys() -> set[str]:
    """Every ``section.key``, of every component, one level of nested configs included."""
    sections = [(name, config) for name, config in CORE.items()]
    sections += [(spec.kind, spec.config) for spec in load_registry().specs()]
    keys = set()
    for section, config in sections:
        for field in dataclasses.fields(config):
            keys.add(f"{section}.{field.name}")
            default = field.default_factory() if callable(field.default_factory) else field.default
            if dataclasses.is_dataclass(default):
                keys |= {f"{section}.{field.name}.{inner.name}" for inner in dataclasses.fields(default)}
    return keys


def test_keys_that_are_named_exist() -> None:
    keys, seen = known_keys(), 0
    sections = "|".join([*KINDS, *CORE])
    for page in PAGES:
        for span in code_spans(page):
            for word in span.split():
                if match := re.fullmatch(rf"((?:{sections})\.[\w.]+)(=.*)?", word):
                    assert match[1] in keys, f"{name_of(page)} names {word}"
                    seen += 1
    assert seen > 15


# --- configs/ -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.relative_to(ROOT / "configs").as_posix())
def test_every_yaml_file_composes(file: Path, tmp_path: Path) -> None:
    folder = file.relative_to(ROOT / "configs").parent.as_posix()
    assert folder in (".", *GROUPS), f"{folder} is no group"
    registry = load_registry()
    run = compose([] if folder == "." else [f"{folder}={file.stem}"], registry)
    (tmp_path / "config.yaml").write_text(to_yaml(run), encoding="utf-8")
    assert load_run_config(tmp_path / "config.yaml", registry) == run
    values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    if folder in PATCHES:
        # It says something: `experiment=x` that changed nothing would be a misspelt package line.
        assert run != compose([], registry), f"{file.name} changes nothing"
    elif folder != ".":
        section = getattr(run, folder)
        assert all(_same(getattr(section, key), value) for key, value in values.items() if key != "defaults")


def _same(have: Any, written: Any) -> bool:
    return have == (tuple(written) if isinstance(written, list) else written)


def test_configs_are_found() -> None:
    assert len(CONFIGS) > 8


# --- tables -------------------------------------------------------------------------------------------------


def test_the_readme_lists_every_component() -> None:
    registry = load_registry()
    ours = {
        (spec.kind, spec.name): spec
        for spec in registry.specs()
        if registry.plugin_of(spec.kind, spec.name)[1] == "gemkit"
    }
    rows = {(kind, name.strip("`")): rest for kind, name, *rest in table_rows(README, "| kind | name |")}
    assert len(rows) > 8
    assert rows.keys() == ours.keys()
    for key, (paper, link) in rows.items():
        file = re.findall(r"\]\((.*)\)", link)[0]
        assert (ROOT / file).resolve() == Path(inspect.getfile(ours[key].cls)).resolve(), key
        assert set(ARXIV.findall(paper)) == set(ARXIV.findall(ours[key].paper or "")), key


@pytest.mark.parametrize("kind", ["interaction", "sequence", "cross", "domain", "head"])
def test_the_blocks_page_lists_every_block(kind: str) -> None:
    registry = load_registry()
    ours = {s.name: s for s in registry.specs() if s.kind == kind and registry.plugin_of(kind, s.name)[1] == "gemkit"}
    rows = table_rows(ROOT / "docs/blocks.md", f"| {kind} |")
    assert {row[0].strip("`") for row in rows} == ours.keys()
    for name, *cells in rows:
        spec = ours[name.strip("`")]
        assert set(ARXIV.findall(cells[-1])) == set(ARXIV.findall(spec.paper or "")), name
        if kind == "sequence":
            flags = (spec.cls.shares_histories, not spec.cls.shortens)
            assert cells[3:5] == ["yes" if flag else "no" for flag in flags], name
    if kind == "cross":
        flow = next(f for f in dataclasses.fields(ours["interformer"].config) if f.name == "flow")
        named = {re.findall(r"`(\w+)`", cell)[0] for name, cell, *_ in rows if name == "`interformer`"}
        assert named == set(flow.metadata["choices"])


def test_concepts_list_every_kind() -> None:
    rows = table_rows(ROOT / "docs/concepts.md", "| kind |")
    assert {kind: (text, optional == "yes") for kind, text, optional in rows} == {
        kind: (text, kind in OPTIONAL_KINDS) for kind, text in KINDS.items()
    }


def test_every_group_is_listed() -> None:
    rows = table_rows(ROOT / "docs/configuration.md", "| group |")
    assert [name for cell, _ in rows for name in re.findall(r"`(\w+)`", cell)] == list(GROUPS)


def test_every_kind_has_its_interface_listed() -> None:
    from gemkit import interfaces
    from gemkit.registry import INTERFACES

    rows = table_rows(ROOT / "docs/write-a-plugin.md", "| kind | class |")
    assert {kind: cell.strip("`") for kind, cell, _ in rows} == INTERFACES
    for kind, cell, compulsory in rows:
        named = set(re.findall(r"`([a-z_]+)`", compulsory))
        abstract = set(getattr(getattr(interfaces, cell.strip("`")), "__abstractmethods__", ()))
        assert kind == "parallel" or abstract <= named, kind
        assert all(n in dir(getattr(interfaces, cell.strip("`"))) or n in _annotated(cell) for n in named), kind


def _annotated(cell: str) -> set[str]:
    from gemkit import interfaces

    return set(inspect.get_annotations(getattr(interfaces, cell.strip("`"))))


def test_every_metric_is_defined(tmp_path: Path) -> None:
    exact, streaming, training = ({key.strip("`") for key, _ in table} for table in _metric_tables())
    run = tiny_run(tmp_path, "train.max_steps=1", num_examples=200, num_events=300)
    metrics = train(run, load_registry(), progress=silent())
    assert set(metrics["test"]["click"]) - {"surfaces"} == exact
    assert set(metrics["train"]) == training
    schema = Schema(tasks=(Task(name="click"),))
    assert set(StreamingMetrics(schema, {"click": 0.5}).compute()["click"]) - exact == streaming


def _metric_tables() -> list[list[list[str]]]:
    """The rows of docs/metrics.md, table by table."""
    rows = table_rows(ROOT / "docs/metrics.md", "| key |")
    first = next(i for i, (key, _) in enumerate(rows) if key == "`auc_histogram`")
    second = next(i for i, (key, _) in enumerate(rows) if key == "`examples_per_s`")
    return [rows[:first], rows[first:second], rows[second:]]


def test_extras_are_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = {cell.strip("`") for cell, _ in table_rows(ROOT / "docs/install.md", "| extra |")}
    assert listed == set(project["optional-dependencies"])


def test_make_variables_are_listed() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = {row[0].strip("`") for row in table_rows(ROOT / "docs/install.md", "| variable |")}
    assert listed == set(re.findall(r"^(\w+) \?=", makefile, re.MULTILINE))


def test_versions_agree() -> None:
    constraints = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "constraints").glob("*.txt"))
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)$", constraints, re.MULTILINE))
    seen = 0
    for page in PAGES:
        for name, version in re.findall(r"([a-z][\w-]*)==([\d.]+\d)", page.read_text(encoding="utf-8")):
            if name in pins:
                assert pins[name] == version, f"{name_of(page)} names {name}=={version}"
                seen += 1
    assert seen > 4
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{gemkit.__version__}]" in changelog


def test_the_tests_read_what_is_there(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One: two\n[a](b.md) ![c](d.svg)\n```bash x\n[e](f) `g`\n```\n`h` ``i`` `j k`\n"
        "| a | b |\n|---|---|\n| 1 | 2 \\| 3 |\n\n| a | c |\n|---|---|\n| 4 | 5 |\n"
    )
    assert links(page) == ["b.md", "d.svg"]
    assert anchors(page) == {"one-two"}
    assert code_spans(page) == ["h", "j k"]
    assert table_rows(page, "| a |") == [["1", "2 \\| 3"], ["4", "5"]]
    assert table_rows(page, "| a | c |") == [["4", "5"]]
