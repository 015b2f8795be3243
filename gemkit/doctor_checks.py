"""What works here: each check really does the thing, in a process of its own (`python -m gemkit.doctor_checks cpu`).

A check returns what it saw, or raises. A crash of the process, a segmentation fault for one, is an answer too.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


class AbsentError(Exception):
    """What is to be checked is not installed, or not there; not a fault by itself."""


class DoubtError(Exception):
    """It works, with a reservation."""


def cpu() -> str:
    """A matrix product, with its gradient."""
    import torch

    x = torch.randn(64, 64, requires_grad=True)
    (x @ x).sum().backward()
    assert x.grad is not None and bool(torch.isfinite(x.grad).all())
    return f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def bf16() -> str:
    """How much slower a bf16 product is than the same in fp32."""
    import torch

    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(256, 256).to(dtype)
        x @ x
        samples = []
        for _ in range(5):
            start = time.perf_counter()
            x @ x
            samples.append(time.perf_counter() - start)
        times[dtype] = min(samples)
    ratio = times[torch.bfloat16] / times[torch.float32]
    if ratio > 1.5:
        raise DoubtError(f"a bf16 product takes {ratio:.1f} times as long as in fp32 on this CPU")
    return f"a bf16 product takes {ratio:.2f} times as long as in fp32"


def cuda() -> str:
    """A matrix product on the first GPU."""
    import torch

    driver = f"an NVIDIA driver is {'' if NVIDIA_DRIVER.exists() else 'not '}loaded"
    if torch.version.cuda is None:
        raise AbsentError(f"torch {torch.__version__} is a CPU build; {driver}")
    if not torch.cuda.is_available():
        raise AbsentError(f"torch is built for CUDA {torch.version.cuda}, but sees no GPU; {driver}")
    x = torch.randn(256, 256, device="cuda", requires_grad=True)
    (x @ x).sum().backward()
    torch.cuda.synchronize()
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def triton() -> str:
    """A tiny kernel: on the GPU if there is one, else in Triton's interpreter."""
    import importlib.util
    import subprocess

    import torch

    if importlib.util.find_spec("triton") is None:
        raise AbsentError("triton is not installed")
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    # The core knows nothing of Triton; the kernels' package checks it.
    command = [sys.executable, "-m", "gemkit_kernels.selfcheck"]
    done = subprocess.run(command, env=os.environ | interpreted, capture_output=True, text=True)
    last = (done.stdout if done.returncode == 0 else done.stderr).strip().rpartition("\n")[2]
    if done.returncode:
        raise RuntimeError(last or f"exit code {done.returncode}")
    return last


def fbgemm() -> str:
    """An unpooled lookup with fused row-wise AdaGrad, forward and backward."""
    import torch

    try:
        import fbgemm_gpu  # noqa: F401
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )
    except ModuleNotFoundError as error:
        raise AbsentError(str(error)) from error
    use_cuda = torch.cuda.is_available()
    place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if use_cuda else (EmbeddingLocation.HOST, ComputeDevice.CPU)
    device = torch.device("cuda" if use_cuda else "cpu")
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(8, 4, *place)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.1,
        pooling_mode=PoolingMode.NONE,
        device=device,
    )
    weights = table.split_embedding_weights()[0]
    weights.fill_(1.0)
    ids = torch.tensor([1, 1, 5], device=device)
    out = table(ids, torch.arange(4, device=device))
    out.sum().backward()
    after = table.split_embedding_weights()[0]
    changed = sorted({int(row) for row in (after != 1.0).nonzero()[:, 0]})
    assert tuple(out.shape) == (3, 4) and changed == [1, 5], f"rows {changed} were updated instead of [1, 5]"
    return f"lookup, backward and fused update on {device.type}"


def torchrec() -> str:
    """Its collections import."""
    try:
        from torchrec import EmbeddingCollection, EmbeddingConfig
    except ModuleNotFoundError as error:
        raise AbsentError(str(error)) from error
    EmbeddingCollection(tables=[EmbeddingConfig(name="t", embedding_dim=4, num_embeddings=8, feature_names=["f"])])
    return "an EmbeddingCollection is built"


def compile_() -> str:
    """torch.compile of a tiny function that no cache has seen."""
    import torch

    new = time.time_ns() % 1_000_003 / 1_000_003
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(32, device=device)
    start = time.perf_counter()
    y = torch.compile(lambda v: torch.sin(v) * 2 + new)(x)
    took_s = time.perf_counter() - start
    torch.testing.assert_close(y, torch.sin(x) * 2 + new)
    return f"a tiny function compiles for {device} in {took_s:.1f} s"


def default_run() -> str:
    """The default run can be composed from the installed plugins."""
    from gemkit.config.compose import compose
    from gemkit.registry import load_registry

    registry = load_registry()
    compose([], registry)
    if registry.failures:
        raise DoubtError(f"composes, but these plugins failed to load: {', '.join(registry.failures)}")
    return f"composes from {len(registry.specs())} components of {len(registry.modules)} plugins"


CHECKS: dict[str, Callable[[], str]] = {
    "cpu": cpu,
    "default run": default_run,
    "cuda": cuda,
    "triton": triton,
    "fbgemm": fbgemm,
    "torchrec": torchrec,
    "compile": compile_,
    "bf16": bf16,
}


def run(check: str) -> dict[str, Any]:
    """The answer of one check: ``{"status": ok | doubt | absent | broken, "detail": text}``."""
    try:
        return {"status": "ok", "detail": CHECKS[check]()}
    except DoubtError as error:
        return {"status": "doubt", "detail": str(error)}
    except AbsentError as error:
        return {"status": "absent", "detail": str(error)}
    except Exception as error:
        lines = [line for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
        return {"status": "broken", "detail": "; ".join(line.strip() for line in lines[:3])}


if __name__ == "__main__":
    answer = functools.partial(print, file=os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)  # libraries print on standard output when imported; the answer stands there alone
    answer(json.dumps(run(sys.argv[1])))
