"""Mutated configs and command lines: a valid run or a clear error; and nothing in a config runs code."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from gemkit.cli.main import main
from gemkit.config.build import to_yaml
from gemkit.config.compose import compose
from gemkit.config.fields import Config, option
from gemkit.config.memory import check_fits
from gemkit.errors import GemkitError
from gemkit.registry import load_registry
from gemkit.session import open_dataset
from gemkit.testing.mutations import COMMAND, PAYLOAD, Mutations, targets
from gemkit.testing.outcomes import DEFECT, ERROR, VALID, outcome_of
from gemkit.testing.runs import SMALL, silent, table_config
from gemkit.testing.teaching import write_log
from gemkit.train import train

WithoutRights = Callable[[], contextlib.AbstractContextManager[None]]

COUNT, MORE = 50, 100
"""Mutations; the second number in `make test-all`, where they begin with the same ones."""
BUILDS = 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], Path]]:
    """The words of a valid tiny run, and a run folder that was trained with them."""
    folder = tmp_path_factory.mktemp("mutations")
    (folder / "configs" / "data").mkdir(parents=True)
    values = table_config(folder / "data", num_users=20, num_examples=240, num_events=480)
    (folder / "configs" / "data" / "tiny.yaml").write_text(yaml.safe_dump(values))
    words = ["data=tiny", *SMALL, "size.num_blocks=1", "train.batch_size=16", "train.max_steps=1"]
    words += [f"runs={folder / 'runs'}"]
    before = Path.cwd()
    os.chdir(folder)
    run = compose(words, load_registry(), [folder / "configs"])
    train(run, load_registry(), progress=silent())
    write_log(folder / "teacher_log", open_dataset(run, load_registry(), silent()))
    yield ["--config-dir", str(folder / "configs"), *words], next((folder / "runs").iterdir())
    os.chdir(before)


def mutations_of(tiny: tuple[list[str], Path], seed: int) -> Mutations:
    words, run = tiny
    return Mutations(load_registry(), words, yaml.safe_load((run / "config.yaml").read_text()), seed)


@pytest.mark.parametrize("count", [COUNT, pytest.param(MORE, marks=pytest.mark.slow)])
def test_every_mutation_is_a_valid_run_or_a_clear_error(
    tiny: tuple[list[str], Path], tmp_path: Path, count: int
) -> None:
    outcomes, builds = [], BUILDS
    for i, mutation in enumerate(mutations_of(tiny, seed=7).take(count)):
        folder = tmp_path / str(i)
        folder.mkdir()
        outcome = outcome_of(mutation, folder, tiny[1], build=builds > 0)
        builds -= outcome.built
        assert outcome.result != DEFECT, f"{mutation}\n{outcome}"
        outcomes.append(outcome)
    errors = [o for o in outcomes if o.result == ERROR]
    assert len(outcomes) == count and {VALID, ERROR} == {o.result for o in outcomes}
    assert sum(o.named for o in errors) >= 0.95 * len(errors), [o.text for o in errors if not o.named]


def test_mutations_depend_on_the_seed_only(tiny: tuple[list[str], Path]) -> None:
    first, again, other = (mutations_of(tiny, seed).take(60) for seed in (1, 1, 2))
    assert first == again != other


def test_mutations_are_of_every_section_and_component() -> None:
    registry = load_registry()
    keys = {(t.section, t.words) for t in targets(registry)}
    assert {"train", "size", "optimizer"} < {section for section, _ in keys}
    for spec in registry.specs():
        if [f for f in dataclasses.fields(spec.config) if f.name != "name"] and spec.name != "table":
            assert any(f"{spec.kind}={spec.name}" in words for _, words in keys)


MALICIOUS = {
    "apply": f"!!python/object/apply:os.system ['{COMMAND}']",
    "eval": f"!!python/object/apply:builtins.eval [\"__import__('os').system('{COMMAND}')\"]",
    "new": f"!!python/object/new:subprocess.Popen [['sh', '-c', '{COMMAND}']]",
    "alias": "[&a 1, *a]",
    "environment": "${oc.env:HOME}",
    "escaped": '"\\x24{oc.env:HOME}"',
    "decode": "${oc.decode:${oc.env:HOME}}",
}


@pytest.mark.parametrize("name", MALICIOUS)
@pytest.mark.parametrize("place", ["group", "experiment", "root", "saved"])
def test_no_file_runs_code_or_reads_the_environment(
    name: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = MALICIOUS[name].replace("{folder}", str(tmp_path))
    saved = to_yaml(compose([], load_registry()))
    root = Path(__file__).resolve().parents[2] / "configs" / "gem.yaml"
    files = {
        "group": ("interaction/evil.yaml", f"name: wukong\nrank: {value}\n", ["config", "interaction=evil"]),
        "experiment": (
            "experiment/evil.yaml",
            f"# @package _global_\ndata:\n  root: {value}\n",
            ["config", "experiment=evil"],
        ),
        "root": ("gem.yaml", root.read_text().replace("runs: runs", f"runs: {value}"), ["config"]),
        "saved": ("config.yaml", saved.replace("rank: 16", f"rank: {value}"), ["train", "--resume", str(tmp_path)]),
    }
    file, text, argv = files[place]
    assert value in text
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert main(argv if place == "saved" else [*argv, "--config-dir", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert file in shown.err and ", line " in shown.err and shown.out == ""
    assert os.environ["HOME"] + "\n" not in shown.err
    assert not (tmp_path / PAYLOAD).exists()


def test_an_alias_bomb_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    levels = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"] + [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    (tmp_path / "config.yaml").write_text("\n".join(levels))
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "anchors and aliases are not supported" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "os.system", "evil", "evil:Component", "file:///evil"])
@pytest.mark.parametrize("form", ["interaction={}", "interaction.name={}", "experiment={}"])
def test_names_are_looked_up_and_never_opened_or_imported(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / PAYLOAD)!r}).touch()\n")
    (tmp_path / "evil.yaml").write_text("name: wukong\nrank: 3\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    word = form.format(f"'{name}'")
    assert main(["config", "--config-dir", str(tmp_path / "a" / "b"), word]) == 2
    assert name in capsys.readouterr().err
    assert not (tmp_path / PAYLOAD).exists()


@pytest.mark.parametrize("key", ["hydra: {searchpath: ['pkg://evil']}", "hydra: {run: {dir: x}}"])
def test_a_file_cannot_speak_to_hydra(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / PAYLOAD)!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    root = Path(__file__).resolve().parents[2] / "configs" / "gem.yaml"
    (tmp_path / "gem.yaml").write_text(f"{root.read_text()}\n{key}\n")
    assert main(["config", "--config-dir", str(tmp_path)]) == 2
    assert "unknown key hydra" in capsys.readouterr().err
    assert not (tmp_path / PAYLOAD).exists()


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["size.dim=20", "sequence.num_heads=3"], "sequence.num_heads"),
        (["size.dim=20", "cross.pffn=gdpa", "cross.gdpa_heads=3"], "cross.gdpa_heads"),
        (["size.num_tokens=4", "interaction.num_fm_tokens=4"], "interaction.num_fm_tokens"),
        (["size.num_tokens=1"], "size.num_tokens"),
        (["cross=interformer", "sequence=none"], "cross=interformer"),
        (["cross.flow=s2n", "sequence=none"], "cross.flow"),
        (["train.batch_size=8", "train.accumulate=3"], "train.accumulate"),
    ],
)
def test_combinations_are_refused_before_anything_is_fetched(
    words: list[str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", *words]) == 2
    assert field in capsys.readouterr().err


@pytest.mark.parametrize("word", ["sequence=none", "ablation=no_sequence"])
def test_the_default_cross_layer_stays_where_there_are_no_events(word: str) -> None:
    run = compose([word], load_registry())
    assert (run.sequence, run.cross.name) == (None, "interformer")


def test_what_does_not_fit_into_memory_is_refused_with_the_sizes() -> None:
    check_fits(1, "a byte", {})
    with pytest.raises(GemkitError, match=r"1,000,000\.0 GB") as caught:
        check_fits(10**15, "the model", {"size.dim": 16384, "train.epochs": 1})
    assert "size.dim = 16384" in str(caught.value.where)


def test_every_whole_number_has_an_end() -> None:
    class Unbounded(Config):
        steps: int = option(1, "Steps.", ge=1)

    import dataclasses

    unbounded = dataclasses.dataclass(frozen=True, kw_only=True)(Unbounded)
    with pytest.raises(GemkitError, match="steps = 1000000000000 is out of range") as caught:
        unbounded(steps=10**12)
    assert caught.value.allowed == f">= 1, <= {2**31 - 1}"


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["config", ""], "word 2"),
        (["config", "--config-dir="], "--config-dir="),
        (["--confg-dir", "x", "config"], "--confg-dir"),
        (["config", "runs='a\0b'"], "no text"),
        (["config", "runs=''"], "runs is empty"),
        (["config", "runs=\udcff"], "no text"),
        (["config", "\x1b[31mx=1"], "\\x1b[31mx"),
        (["data", "build", "table", "--agian"], "--again"),
    ],
)
def test_words(argv: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    shown = capsys.readouterr().err
    assert word in shown and "\x1b" not in shown


def test_a_file_without_permission_is_named(
    open_folder: Path, without_rights: WithoutRights, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config"]) == 0  # imports what it needs, which a plain user may not be able to read
    (open_folder / "config.yaml").write_text("seed: 1\n")
    (open_folder / "config.yaml").chmod(0)
    with without_rights():
        assert main(["train", "--resume", str(open_folder)]) == 2
    shown = capsys.readouterr().err
    assert "Permission denied" in shown and str(open_folder / "config.yaml") in shown
