"""Time to the first step: its parts, what is compiled in it, what is not imported before it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from gemkit.compilation.place import TRITON_VARIABLE, VARIABLE
from gemkit.config.build import to_yaml
from gemkit.registry import load_registry
from gemkit.runs.startup import PARTS, StartClock, process_started_s
from gemkit.session import open_dataset
from gemkit.testing.runs import silent, tiny_run
from gemkit.train import train

NOT_WANTED = {
    *("torchrec", "tensorboard", "torch.utils.tensorboard", "pandas", "scipy", "duckdb", "pytest"),
    *("torch._inductor.compile_fx", "torch._inductor.codecache", "multiprocessing.forkserver"),
    *("gemkit.compilation.archive", "gemkit.studies.report"),
}
"""Modules that the first step of a plain run does without."""


class TestStartClock:
    def test_the_parts_fill_the_whole(self) -> None:
        clock = [100.0]
        start = StartClock(started_s=90.0, now=lambda: clock[0])
        start.ends("import")
        for part, taken in (("data", 2.0), ("build", 3.0), ("data", 4.0), ("load", 5.0)):
            clock[0] += taken
            start.ends(part)
        clock[0] += 6.0
        with start.step():
            clock[0] += 7.0
        clock[0] += 3.0
        with start.step():
            clock[0] += 5.0
        clock[0] += 8.0
        parts = {"import": 10.0, "data": 12.0, "build": 3.0, "load": 5.0, "compile": 0.0, "step": 7.0}
        assert start.report() == {"start_s": {"total": 37.0, **parts}, "effective_time": 12.0 / 53.0}

    def test_without_a_step(self) -> None:
        clock = [100.0]
        start = StartClock(now=lambda: clock[0])
        clock[0] += 1.0
        assert start.report() == {"start_s": None, "effective_time": 0.0}

    def test_compilation_is_no_training(self) -> None:
        torch._dynamo.reset()
        start, compiled = StartClock(), torch.compile(lambda x: x.sin() + 1, backend=_slow_compiler)
        with start.counting_compilation():
            for _ in range(2):
                with start.step():
                    compiled(torch.ones(3))
        assert 0.2 <= start.parts["compile"] < start.report()["start_s"]["total"]
        assert start.report()["effective_time"] < 0.5
        handler = torch._dynamo.callback.callback_handler
        assert not handler.start_callbacks and not handler.end_callbacks

    def test_the_process_began_before_its_imports(self) -> None:
        code = "import time; time.sleep(0.6); from gemkit.runs.startup import process_started_s as began\n"
        code += "print(time.perf_counter() - began())"
        before = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert 0.6 <= float(done.stdout) <= time.perf_counter() - before + 0.02

    def test_where_the_system_does_not_tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import gemkit

        monkeypatch.setattr(time, "clock_gettime", lambda _: 1 / 0)
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: "no numbers")
        assert process_started_s() == gemkit.IMPORTED_S


def _slow_compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
    time.sleep(0.2)
    return graph.forward


def test_a_run_reports_its_start(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "train.max_steps=3", num_examples=400, num_events=600)
    found = train(run, load_registry(), progress=silent(), started_s=time.perf_counter() - 5.0)["train"]
    start = found["start_s"]
    assert list(start) == ["total", *PARTS]
    assert 5.0 <= start["import"] < 6.0 and start["compile"] == 0
    assert min(start[part] for part in ("data", "build", "step")) > 0
    assert start["total"] == pytest.approx(sum(start[part] for part in PARTS))
    assert 0 < found["effective_time"] < 0.5


def test_equal_blocks_and_all_sizes_share_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four blocks: the first, which meets the tokenizer's tokens, is unlike the others; batches differ in size."""
    from torch._dynamo.utils import counters

    for name in (VARIABLE, TRITON_VARIABLE):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    # Graphs are counted before the compiler proper, which would take minutes.
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    overrides = ("train.compile=true", "size.num_blocks=4", "train.max_steps=4", "train.batch_size=64")
    run = tiny_run(tmp_path, *overrides, num_examples=700, num_events=1400)
    with torch._dynamo.config.patch(recompile_limit=8, specialize_float=False):
        metrics = train(run, load_registry(), progress=silent())["train"]
        assert torch._dynamo.config.recompile_limit == 32
    assert metrics["steps"] == 4 and metrics["start_s"]["compile"] > 0
    training, evaluation = 2, 2
    assert counters["stats"]["unique_graphs"] == training + evaluation
    assert not counters["graph_break"]
    torch._dynamo.reset()


def test_what_a_plain_run_does_not_import(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "train.max_steps=1", num_examples=400, num_events=600)
    open_dataset(run, load_registry(), silent())  # building it needs more
    data = yaml.safe_load(to_yaml(run))["data"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tiny.yaml").write_text(yaml.safe_dump(data))
    code = (
        "import os, sys\nfrom gemkit.cli.main import main\nimport gemkit.train\n"
        "def step(*_):\n    print(*sys.modules, flush=True)\n    os._exit(0)\n"
        "gemkit.train.Training.step = step\nsys.exit(main(sys.argv[1:]))"
    )
    words = ["train", "--config-dir", str(tmp_path), "data=tiny", f"runs={tmp_path / 'runs'}", "size.dim=16"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "lightning.fabric" in loaded
    assert loaded & NOT_WANTED == set()


@pytest.mark.slow
def test_the_code_of_autograd_functions_is_part_of_the_key(tmp_path: Path) -> None:
    """Graphs with an autograd.Function of ours come from the cache, unless the function has changed."""
    code = """
import sys, torch
from torch import nn
from torch._dynamo.utils import counters
from gemkit.compilation.blocks import compile_blocks
factor = float(sys.argv[2])
class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * factor
    @staticmethod
    def backward(ctx, gradient):
        return gradient * factor
class Block(nn.Module):
    def forward(self, x):
        return Scale.apply(x)
blocks = nn.ModuleList([Block()])
compile_blocks(blocks, sys.argv[1])
x = torch.ones(3, requires_grad=True)
y = blocks[0](x)
y.sum().backward()
print(y[0].item(), x.grad[0].item(), counters["aot_autograd"]["autograd_cache_hit"])
"""
    seen = []
    for factor in ("2", "2", "3"):
        command = [sys.executable, "-c", code, str(tmp_path), factor]
        clean = {k: v for k, v in os.environ.items() if k not in (VARIABLE, TRITON_VARIABLE)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)
        assert done.returncode == 0, done.stderr
        seen.append(done.stdout.split())
    assert seen == [["2.0", "2.0", "0"], ["2.0", "2.0", "1"], ["3.0", "3.0", "0"]]
