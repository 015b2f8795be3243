"""Graphs of teachers and students: what is run, what is not run again, and what is reported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from gemkit.cli.main import main
from gemkit.config.fields import from_mapping
from gemkit.data.collate import collate
from gemkit.errors import GemkitError
from gemkit.registry import load_registry
from gemkit.session import load_run, open_dataset, reading_of
from gemkit.testing.runs import silent, table_config, tiny_run
from gemkit.transfer import units
from gemkit.transfer.graph import run as graph_run
from gemkit.transfer.graph.config import GraphConfig, in_order, strategies
from gemkit.transfer.graph.picture import levels_of
from gemkit.transfer.graph.report import Interval, report, write_report
from gemkit.transfer.graph.run import GraphRunner, Trained

BASE = ["data=tiny", "size.dim=8", "size.num_blocks=1", "size.num_tokens=4", "interaction.rank=4"]
BASE += ["sequence=none", "cross=none", "train.batch_size=64", "parallel.accelerator=cpu", "train.log_every=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A folder with a YAML choice of a tiny data set, and the days that it spans."""
    folder = tmp_path_factory.mktemp("graph")
    (folder / "configs" / "data").mkdir(parents=True)
    values = table_config(folder / "data", num_examples=500, num_events=100)
    (folder / "configs" / "data" / "tiny.yaml").write_text(yaml.safe_dump(values))
    data = open_dataset(tiny_run(folder / "data", num_examples=500, num_events=100), load_registry(), silent())
    return folder, float(data.days(np.arange(data.num_examples)).max()) + 1e-6


def graph_of(days: float, seeds: int = 1, **nodes: dict[str, Any]) -> GraphConfig:
    def window(first: float, last: float) -> list[str]:
        cuts = [first, first + 0.7 * (last - first), first + 0.85 * (last - first), last]
        pairs = zip(("train", "valid", "test"), cuts, cuts[1:], strict=False)
        return [f"data.{split}_days=[{a * days},{b * days}]" for split, a, b in pairs]

    found = {}
    for name, node in nodes.items():
        rest = {key: value for key, value in node.items() if key not in ("at", "words")}
        found[name] = {"words": [*window(*node["at"]), *node.get("words", [])], **rest}
    graph: GraphConfig = from_mapping(GraphConfig, {"base": BASE, "seeds": seeds, "task": "click", "nodes": found})
    return graph


def chain(days: float, **changes: Any) -> GraphConfig:
    """A GEM, a domain model, and a student of both."""
    return graph_of(
        days,
        gem={"at": (0.0, 0.3)},
        domain={"at": (0.3, 0.6), "teachers": {"gem": "auxiliary_head"}, "alone": False},
        vm={
            "at": (0.6, 1.0),
            "teachers": {"gem": {"representation": {"of": "newest"}}, "domain": ["distill", "parameter_sharing"]},
            **changes,
        },
    )


def runner_of(graph: GraphConfig, place: tuple[Path, float], out: Path) -> GraphRunner:
    return GraphRunner(graph, out, units.Units(load_registry(), (), [place[0] / "configs"], silent()))


def test_a_chain_is_trained_reported_and_not_trained_again(
    place: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = chain(place[1])
    found = runner_of(graph, place, tmp_path).run()
    assert [(t.node, t.alone) for t in found] == [("gem", False), ("domain", False), ("vm", True), ("vm", False)]
    assert [t.log is not None for t in found] == [True, True, False, False]
    config = load_run(found[-1].run.path, load_registry()).model.run.transfer
    assert list(config.parts) == ["gem_representation", "domain_distill", "domain_parameter_sharing"]
    assert config.parts["gem_representation"].log == str(found[0].log)
    assert config.parts["domain_parameter_sharing"].teacher == str(found[1].run.path)

    facts = report(graph, found, load_registry())
    vm = facts["nodes"]["vm"]
    assert vm["gain"]["mean"] == pytest.approx(vm["alone"]["ne"] - vm["ne"]) and vm["gain"]["half"] is None
    assert [(e["teacher"], e["student"]) for e in facts["edges"]] == [
        ("gem", "domain"),
        ("gem", "vm"),
        ("domain", "vm"),
    ]
    assert facts["edges"][2]["teacher_ne"] == pytest.approx(ne_by_hand(found[1], found[3]), rel=1e-4)
    assert all(node["ms_per_1000"] > 0 and node["params"] > 0 for node in facts["nodes"].values())
    write_report(facts, tmp_path)
    ElementTree.parse(tmp_path / "graph.svg")
    text = (tmp_path / "report.md").read_text()
    assert "| domain → vm | distill, parameter_sharing |" in text and f"{vm['ne']:.4f}" in text

    trained: list[Any] = []
    monkeypatch.setattr(units, "train", lambda *args: trained.append(args))
    monkeypatch.setattr(graph_run, "teach", lambda *args: trained.append(args))
    again = runner_of(graph, place, tmp_path).run()
    assert [t.folder for t in again] == [t.folder for t in found] and not trained


def ne_by_hand(teacher: Trained, student: Trained) -> float:
    """The teacher itself on the student's test split."""
    import torch

    loaded, own = load_run(teacher.run.path, load_registry()), load_run(student.run.path, load_registry())
    data = open_dataset(own.model.run, load_registry(), silent())
    batch = collate(data, data.split("test"), reading_of(loaded.model.run, loaded.model.dense))
    with torch.no_grad():
        p = torch.sigmoid(loaded.model(batch).logits[:, 0].double())
    y, w = batch.labels[:, 0].double(), batch.weights.double()
    logloss = -((y * p.log() + (1 - y) * (1 - p).log()) * w).sum() / w.sum()
    rate = student.run.metrics()["test"]["click"]["base_rate"]
    return float(logloss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))


def test_only_what_a_change_reaches_is_trained_again(place: tuple[Path, float], tmp_path: Path) -> None:
    runner = runner_of(chain(place[1]), place, tmp_path)
    keys = keys_of(runner)
    changed = keys_of(runner_of(chain(place[1], words=["optimizer.lr=0.01"]), place, tmp_path))
    assert keys["gem"] == changed["gem"] and keys["domain"] == changed["domain"] and keys["vm"] != changed["vm"]
    nodes = dict(runner.graph.nodes)
    nodes["gem"] = dataclasses.replace(nodes["gem"], words=(*nodes["gem"].words, "optimizer.lr=0.01"))
    other = keys_of(runner_of(dataclasses.replace(runner.graph, nodes=nodes), place, tmp_path))
    assert all(keys[name] != other[name] for name in keys)
    moved = keys_of(runner_of(chain(place[1]), place, tmp_path / "elsewhere"))
    assert moved == keys


def test_a_student_that_reads_codes_later_makes_its_teacher_answer_again_and_not_train(
    place: tuple[Path, float], tmp_path: Path
) -> None:
    def graph(learned: str, **gem: Any) -> GraphConfig:
        return graph_of(place[1], gem={"at": (0.0, 0.4), **gem}, vm={"at": (0.4, 1.0), "teachers": {"gem": learned}})

    plain = runner_of(graph("distill"), place, tmp_path).run()
    coded = runner_of(graph("representation"), place, tmp_path).run()
    assert plain[0].run == coded[0].run and plain[0].log != coded[0].log
    assert [t.log and t.log.name for t in (plain[0], coded[0])] == ["log", "log-32x8"]
    assert plain[-1].run != coded[-1].run
    users = runner_of(graph("representation", codes_of="user"), place, tmp_path).run()
    assert users[0].run == coded[0].run and users[0].log and users[0].log.name == "log-32x8-user"
    assert users[-1].run != coded[-1].run


def keys_of(runner: GraphRunner) -> dict[str, str]:
    """The keys of all nodes, as if their teachers were trained."""
    done: dict[str, Any] = {}
    for name in in_order(runner.graph):
        teachers = {teacher: done[teacher] for teacher in runner.graph.nodes[name].teachers}
        key = runner.key(name, runner.config(name, 1, dict.fromkeys(teachers)), teachers)
        done[name] = Trained(name, 1, False, key, Path(), None, None)  # type: ignore[arg-type]
    return {name: trained.key for name, trained in done.items()}


def test_a_graph_that_was_stopped_goes_on(
    place: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_of(place[1], gem={"at": (0.0, 0.4)}, vm={"at": (0.4, 1.0), "teachers": {"gem": "distill"}})
    whole = runner_of(graph, place, tmp_path / "whole").run()
    teach, calls = graph_run.teach, []

    def killed(*args: Any) -> Any:
        calls.append(teach(*args))
        raise KeyboardInterrupt  # after the log is written, before anybody knows

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(graph_run, "teach", killed)
        runner_of(graph, place, tmp_path / "stopped").run()
    assert calls[0].answered > 0
    found = runner_of(graph, place, tmp_path / "stopped").run()
    for one, two in zip(whole, found, strict=True):
        assert one.run.metrics()["test"] == two.run.metrics()["test"], one.node


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "has no nodes"),
        ({"nodes": {"a b": {}}}, "a model is called"),
        ({"nodes": {"gem": {}, "vm": {"teachers": {"gen": "distill"}}}}, "which is no node"),
        ({"nodes": {"a": {"teachers": {"b": "distill"}}, "b": {"teachers": {"a": "distill"}}}}, "waits for another"),
        ({"nodes": {"a": {"teachers": {"a": "distill"}}}}, "waits for another"),
        ({"nodes": {"gem": {}, "vm": {"teachers": {"gem": 3}}}}, "names no strategy"),
        ({"nodes": {"gem": {"code_bits": 5}}}, "code_bits = 5"),
        ({"nodes": {"gem": {"word": ["seed=1"]}}}, "unknown key nodes.gem.word"),
    ],
)
def test_graphs_that_make_no_sense_are_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(GemkitError, match=message):
        from_mapping(GraphConfig, values)


@pytest.mark.parametrize(
    ("words", "teachers", "where"),
    [
        (["interaction=wukogn"], {}, "node vm, interaction"),
        ([], {"gem": "distil"}, "node vm, transfer"),
        ([], {"gem": {"distill": {"wait": 1}}}, "node vm, transfer.parts.gem_distill"),
    ],
)
def test_a_wrong_word_is_found_before_any_training(
    place: tuple[Path, float], tmp_path: Path, words: list[str], teachers: dict[str, Any], where: str
) -> None:
    graph = graph_of(place[1], gem={"at": (0.0, 0.4)}, vm={"at": (0.4, 1.0), "words": words, "teachers": teachers})
    with pytest.raises(GemkitError) as caught:
        runner_of(graph, place, tmp_path / "out").run()
    assert (caught.value.where or "").startswith(where) and not (tmp_path / "out").exists()


def test_strategies_can_be_said_in_three_ways() -> None:
    assert strategies("distill", "") == {"distill": {}}
    assert strategies(["a", "b"], "") == {"a": {}, "b": {}}
    assert strategies({"a": None, "b": {"weight": 2}}, "") == {"a": {}, "b": {"weight": 2}}


def test_levels_are_counted_along_the_longest_way() -> None:
    edges = [{"teacher": a, "student": b} for a, b in (("gem", "vm"), ("gem", "domain"), ("domain", "vm"))]
    assert levels_of({"nodes": {"vm": 0, "domain": 0, "gem": 0}, "edges": edges}) == {"vm": 2, "domain": 1, "gem": 0}


def test_an_interval_is_students() -> None:
    found = Interval.of([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.half == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert str(found) == "+2.0000 ± 2.4841"


def test_the_command(place: tuple[Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = chain(place[1])
    nodes = {n: {"words": list(c.words), "teachers": c.teachers} for n, c in graph.nodes.items()}
    (tmp_path / "g.yaml").write_text(json.dumps({"base": BASE, "nodes": nodes}))
    words = ["transfer", "--config-dir", str(place[0] / "configs")]
    assert main([*words, str(tmp_path / "g.yaml"), "--check"]) == 0, capsys.readouterr().err
    assert "gem -> domain -> vm" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "h.yaml")]) == 2
    assert "there is no file" in capsys.readouterr().err
