"""Operations on jagged histories and feature tokens: plain PyTorch on any device, Triton on NVIDIA GPUs.

Each has a folder of its own:

    <op>/reference.py   plain PyTorch; this is the definition
    <op>/op.py          the function to call: checks its arguments, chooses a path; and the `torch.library` operator
    <op>/pytorch.py     fast, vectorised PyTorch: the path on CPUs
    <op>/triton.py      the kernels: the path on NVIDIA GPUs, and Triton's interpreter in tests
    <op>/bench.py       what `python -m gemkit_kernels.bench` times, as data

Nothing here imports Triton before a kernel is started.
"""

OPS = ("chunk_attention", "fm_block", "fp8", "gdpa", "jagged_attention", "jagged_pool")
"""Folders of the operations."""
