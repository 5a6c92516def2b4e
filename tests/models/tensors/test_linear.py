"""Packed products against plain ones, and what happens where they cannot be had."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from headrace.models.tensors.linear import can_pack, make_linear
from tests.stand_ins import stand_in

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_probe() -> Iterator[None]:
    can_pack.cache_clear()
    yield
    can_pack.cache_clear()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 2, 17, 300])
@pytest.mark.parametrize(("size_in", "size_out"), [(576, 1536), (64, 33), (7, 5), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_multiplies(rows: int, size_in: int, size_out: int, dtype: torch.dtype) -> None:
    weight, bias, x = random(size_out, size_in), random(size_out, seed=1), random(rows, size_in, seed=2).to(dtype)
    found = make_linear([weight], [bias], dtype, CPU)(x)
    expected = functional.linear(x.double(), weight.to(dtype).double(), bias.to(dtype).double())
    assert found.dtype == dtype
    assert found.shape == (rows, size_out)
    relative = (found.double() - expected).norm() / expected.norm()
    assert relative < (1e-5 if dtype == torch.float32 else 1e-2)


def test_several_modules_are_one_product_with_their_own_biases() -> None:
    weights = [random(6, 8), random(3, 8, seed=1), random(2, 8, seed=2)]
    biases = [random(6, seed=3), None, random(2, seed=4)]
    x = random(4, 8, seed=5)
    found = make_linear(weights, biases, torch.float32, CPU)(x)
    expected = torch.cat([functional.linear(x, w, b) for w, b in zip(weights, biases, strict=True)], dim=1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_packing_works_here() -> None:
    """Not a rule, but on an x86 machine with a stock torch its loss would cost a factor of two unnoticed."""
    assert can_pack(torch.float32) == torch.backends.mkldnn.is_available()


def broken(*arguments: object) -> torch.Tensor:
    raise RuntimeError("no such kernel")


def wrong(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *_: object) -> torch.Tensor:
    return functional.linear(rows, weight, bias) * 1.01


@pytest.mark.parametrize("product", [broken, wrong])
def test_a_missing_or_wrong_kernel_means_plain_products(monkeypatch: pytest.MonkeyPatch, product: object) -> None:
    kernels = stand_in(_reorder_linear_weight=lambda weight, _rows: weight, _linear_pointwise=product)
    monkeypatch.setattr(torch.ops, "mkldnn", kernels)
    assert not can_pack(torch.float32)
    weight, x = random(5, 8), random(2, 8, seed=1)
    assert torch.equal(make_linear([weight], [None], torch.float32, CPU)(x), functional.linear(x, weight))
