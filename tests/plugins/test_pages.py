"""Tables in huge pages: zeros as ever, and advice to the kernel about whole pages of them alone."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import pytest
import torch
from gemkit_hsdp import pages
from gemkit_hsdp.pages import zeros_in_huge_pages

SIZES = [(0, 16), (1, 1), (3, 5), (100_000, 16), (600_000, 16), (9_000_001,)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_they_are_zeros(size: tuple[int, ...], dtype: torch.dtype) -> None:
    values = zeros_in_huge_pages(*size, dtype=dtype)
    assert values.shape == size and values.dtype == dtype and values.is_contiguous()
    assert torch.equal(values, torch.zeros(size, dtype=dtype))


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no Linux")
@pytest.mark.parametrize("size", SIZES)
def test_advice_is_about_whole_pages_inside(monkeypatch: pytest.MonkeyPatch, size: tuple[int, ...]) -> None:
    asked: list[tuple[int, int, int]] = []
    real = ctypes.CDLL(None).madvise

    class Library:
        @staticmethod
        def madvise(start: Any, length: Any, advice: int) -> int:
            asked.append((start.value, length.value, advice))
            return int(real(start, length, advice))

    monkeypatch.setattr(pages.ctypes, "CDLL", lambda name: Library)
    values = zeros_in_huge_pages(*size)
    if values.nbytes < pages.LEAST:
        assert not asked, "it may lie among others"
        return
    ((start, length, advice),) = asked
    assert advice == mmap.MADV_HUGEPAGE and start % mmap.PAGESIZE == length % mmap.PAGESIZE == 0
    assert values.data_ptr() <= start and start + length <= values.data_ptr() + values.nbytes
    assert length > values.nbytes - 2 * mmap.PAGESIZE


def test_where_there_is_no_such_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pages.mmap, "MADV_HUGEPAGE", raising=False)
    monkeypatch.setattr(pages.ctypes, "CDLL", None)
    assert torch.equal(zeros_in_huge_pages(50_000, 4), torch.zeros(50_000, 4))
