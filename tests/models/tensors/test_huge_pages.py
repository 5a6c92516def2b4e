"""Memory for weights and the cache: what it holds, and that small tensors lie together in pages that are aligned."""

import mmap

import pytest
import torch

from headrace.models.tensors.huge_pages import Arena, zeros

_HUGE = 2 << 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_zeros_begin_at_a_huge_page_and_are_zero(dtype: torch.dtype) -> None:
    found = zeros(100_001, dtype)
    assert found.data_ptr() % _HUGE == 0
    assert (found.shape, found.dtype, int(found.count_nonzero())) == ((100_001,), dtype, 0)


def test_without_huge_pages_it_is_ordinary_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    found = zeros(10, torch.float32)
    found += 1
    assert found.sum() == 10


def test_an_arena_keeps_copies_side_by_side() -> None:
    arena = Arena()
    given = [torch.randn(3, 5), torch.arange(7, dtype=torch.int8), torch.randn(2, 33).t()]
    kept = [arena.copy(each) for each in given]
    for one, other in zip(given, kept, strict=True):
        assert torch.equal(one, other)
        assert other.is_contiguous()
        assert other.data_ptr() % 64 == 0
    assert kept[-1].data_ptr() - kept[0].data_ptr() < 4096
    large = arena.copy(torch.ones(40 << 20, dtype=torch.int8))
    assert large.sum(dtype=torch.long) == 40 << 20
    assert torch.equal(kept[0], given[0])
