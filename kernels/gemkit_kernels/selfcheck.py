"""`python -m gemkit_kernels.selfcheck`: whether Triton works here. The last line of its output says what ran.

Without a GPU the kernel runs in Triton's interpreter: start it with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


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
    print(f"kernels run {place}")


if __name__ == "__main__":
    main()
