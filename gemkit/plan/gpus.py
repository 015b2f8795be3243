"""Facts about GPUs and the machines that hold them, as their makers print them."""

from __future__ import annotations

import dataclasses

from gemkit.errors import GemkitError, did_you_mean

CPU = "cpu"
"""In place of a GPU's name: this machine, whose peak is measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU in the machine in which it is sold by the thousand.

    Attributes:
        flop_per_s: Precision of a run (`train.precision`) -> matrix-product peak, without sparsity.
        memory_bytes: As printed, in units of 10^9.
        memory_bytes_per_s: Of its own memory.
        per_node: GPUs that are connected directly.
        intra_bytes_per_s: To the other GPUs of its node, in one direction.
        inter_bytes_per_s: Its share of the node's network, in one direction.
    """

    name: str
    flop_per_s: dict[str, float]
    memory_bytes: float
    memory_bytes_per_s: float
    per_node: int
    intra_bytes_per_s: float
    inter_bytes_per_s: float


# fp32 is that of the CUDA cores: PyTorch computes fp32 products in TF32 only if it is told to, and gemkit does not.
# NVLink is printed as the sum of both directions; half of it is one. Networks: one port for each GPU.
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        # NVIDIA A100 datasheet, SXM4; DGX A100: eight ports of 200 Gbit/s.
        Gpu(
            name="a100-40g",
            flop_per_s={"bf16": 312e12, "fp32": 19.5e12},
            memory_bytes=40e9,
            memory_bytes_per_s=1.555e12,
            per_node=8,
            intra_bytes_per_s=300e9,
            inter_bytes_per_s=25e9,
        ),
        # The same datasheet.
        Gpu(
            name="a100-80g",
            flop_per_s={"bf16": 312e12, "fp32": 19.5e12},
            memory_bytes=80e9,
            memory_bytes_per_s=2.039e12,
            per_node=8,
            intra_bytes_per_s=300e9,
            inter_bytes_per_s=25e9,
        ),
        # NVIDIA H100 datasheet, SXM5; DGX H100: eight ports of 400 Gbit/s.
        Gpu(
            name="h100-80g",
            flop_per_s={"bf16": 989.4e12, "fp32": 66.9e12},
            memory_bytes=80e9,
            memory_bytes_per_s=3.35e12,
            per_node=8,
            intra_bytes_per_s=450e9,
            inter_bytes_per_s=50e9,
        ),
        # NVIDIA H200 datasheet, SXM5; DGX H200: eight ports of 400 Gbit/s.
        Gpu(
            name="h200-141g",
            flop_per_s={"bf16": 989.4e12, "fp32": 66.9e12},
            memory_bytes=141e9,
            memory_bytes_per_s=4.8e12,
            per_node=8,
            intra_bytes_per_s=450e9,
            inter_bytes_per_s=50e9,
        ),
    )
}
"""Name -> facts."""


def find_gpu(name: str) -> Gpu:
    """
    Raises:
        GemkitError: Nobody has written down this GPU.
    """
    if name not in GPUS:
        raise GemkitError(
            f"unknown GPU {name!r}",
            where="--gpu",
            allowed=", ".join([*GPUS, CPU]),
            fix=did_you_mean(name, [*GPUS, CPU]) or "take the nearest, and say what differs (`gemkit plan --help`)",
        )
    return GPUS[name]


def this_cpu(flop_per_s: float, memory_bytes: float) -> Gpu:
    """Processes of this machine in place of GPUs: all in one node. Its bandwidths must be said, as nobody prints them.

    Args:
        flop_per_s: Measured matrix-product peak of one process (`gemkit.cost.matmul_peak`).
        memory_bytes: That one process may take.
    """
    return Gpu(
        name=CPU,
        flop_per_s={"fp32": flop_per_s, "bf16": flop_per_s},
        memory_bytes=memory_bytes,
        memory_bytes_per_s=0.0,
        per_node=2**20,
        intra_bytes_per_s=0.0,
        inter_bytes_per_s=0.0,
    )
