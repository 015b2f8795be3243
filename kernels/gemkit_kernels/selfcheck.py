"""`python -m gemkit_kernels.selfcheck`: whether Triton works here, and which path operations take.

The last line of its output says so.

Without a GPU the kernel runs in Triton's interpreter: start it with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gemkit_kernels import OPS, paths


@triton.jit
def _double(x_ptr, y_ptr, n, BLOCK: tl.constexpr):  # noqa: N803
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, 2 * tl.load(x_ptr + i, mask=i < n), mask=i < n)


def main() -> None:
    """Runs a tiny kernel.

    Raises:
        RuntimeError: Its result is wrong.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.arange(45, dtype=torch.float32, device=device)
    y = torch.full_like(x, torch.nan)
    _double[(triton.cdiv(x.numel(), 16),)](x, y, x.numel(), BLOCK=16)
    if not torch.equal(y, 2 * x):
        raise RuntimeError("a Triton kernel gives a wrong result")
    place = "on the GPU" if device == "cuda" else "in the interpreter; on the hardware they need a GPU"
    taken = {op: paths.choose(op, device) for op in OPS}
    operations = [
        f"{', '.join(op for op in OPS if taken[op] == path)} in {path}" for path in sorted(set(taken.values()))
    ]
    print(f"kernels run {place}; on {device}: {'; '.join(operations)}")


if __name__ == "__main__":
    main()
