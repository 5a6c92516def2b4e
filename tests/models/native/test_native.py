"""The CPU kernels against their twin in torch and the reference, and the promise that batch mates change no bit."""

import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from headrace.models.engine.runner import Interrupt, Interrupted, Row, StepPlan
from headrace.models.loading.torch_load import runner_for
from headrace.models.native.build import FLAGS, SOURCES, BuildFailed, build
from headrace.models.native.layout import pack
from headrace.models.native.library import Kernels
from headrace.models.native.llama import NativeLlama
from headrace.models.runners.torch_runner import TorchRunner
from headrace.models.tensors.quantised import round_to_int8
from headrace.store.settings import Settings
from tests.models import tiny
from tests.models.driving import count_near_ties, random_prompts, request, run_all

DTYPES = ("float32", "bfloat16", "int8")
_HOME = Path(__file__).parents[3] / ".headrace"

_COMPILER = next((found for name in ("g++", "c++", "clang++") if (found := shutil.which(name))), None)
# CPUs that this machine need not be, but its compiler knows.
_CPUS = {
    "x86_64": ("x86-64", "x86-64-v3", "skylake-avx512", "icelake-server", "sapphirerapids"),
    "aarch64": ("armv8-a", "armv8.2-a+dotprod"),
}

pytestmark = pytest.mark.skipif(_COMPILER is None, reason="the kernels need a C++ compiler")


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    return Kernels(build(_HOME / "native"))


@pytest.fixture(scope="module", params=list(tiny.MODELS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each family."""
    return tiny.save(tiny.build(request.param), tmp_path_factory.mktemp("model"))


def load(folder: Path, dtype: str, native: str = "auto", threads: int = 0, home: Path = _HOME) -> TorchRunner:
    settings = Settings(device="cpu", kv_pool_tokens=4096, native_kernels=native, home=home, torch_threads=threads)
    return runner_for(folder, settings, dtype=dtype)


def compute(runner: TorchRunner, *parts: tuple[Sequence[int], int, Sequence[int]]) -> torch.Tensor:
    """Return the scores after the first part's last token; a part is tokens, the first's position, and blocks."""
    rows = tuple(
        Row(request(range(600), f"r{index}"), tokens, start, blocks, (), sample=True)
        for index, (tokens, start, blocks) in enumerate(parts)
    )
    with torch.inference_mode():
        batch = runner.batch_builder.build(StepPlan(rows))
        hidden = runner.model.forward(batch, runner.cache)
        end = next(end for row, end in zip(batch.rows, batch.ends, strict=True) if row.request.id == "r0")
        return runner.model.logits(hidden[[end]])[0]


def test_no_rows_have_no_scores(folder: Path) -> None:
    runner = load(folder, "bfloat16")
    assert isinstance(runner.model, NativeLlama)
    assert runner.model.logits(torch.empty(0, runner.model.config.hidden_size)).shape == (0, tiny.VOCAB)


def test_an_interrupted_pass_leaves_nothing_that_changes_the_next(folder: Path) -> None:
    runner = load(folder, "bfloat16", threads=2)
    tokens = list(range(5, 45))
    expected = compute(runner, (tokens, 0, range(3)))
    interrupt = Interrupt()
    rows = (Row(request(range(600), "r0"), tokens[::-1], 0, range(3), (), sample=True),)
    batch = runner.batch_builder.build(StepPlan(rows, interrupt))
    with torch.inference_mode():
        whole = runner.model.forward(batch, runner.cache)
        interrupt.set()
        with pytest.raises(Interrupted):
            runner.model.forward(batch, runner.cache)
    assert whole.isfinite().all()
    assert torch.equal(compute(runner, (tokens, 0, range(3))), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(("size_in", "size_out"), [(576, 960), (96, 50), (1536, 64)])
def test_a_linear_layer_multiplies_and_no_row_depends_on_another(
    kernels: Kernels, dtype: torch.dtype, size_in: int, size_out: int
) -> None:
    draw = torch.Generator().manual_seed(3)
    weight, bias, rows = (
        torch.randn(*shape, generator=draw) for shape in [(size_out, size_in), (size_out,), (70, size_in)]
    )
    packed = pack(weight, bias, dtype)
    together = kernels.linear(packed, rows, threads=2)[:, :size_out]
    if dtype == torch.int8:
        expected = round_to_int8(rows).double() @ round_to_int8(weight).double().T + bias
    else:
        expected = rows.to(dtype).double() @ weight.to(dtype).double().T + bias
    assert ((together - expected).norm() / expected.norm()).item() < 1e-5
    for count in (1, 2, 3, 5, 7, 12, 13, 16, 17, 31, 33, 64):
        assert torch.equal(kernels.linear(packed, rows[:count], threads=1)[:, :size_out], together[:count])


def test_in_8_bits_one_large_number_does_not_take_the_others_digits(kernels: Kernels) -> None:
    draw = torch.Generator().manual_seed(4)
    weight, rows = (torch.randn(*shape, generator=draw) for shape in [(64, 576), (9, 576)])
    exact = rows.double() @ weight.double().T
    usual = (kernels.linear(pack(weight, None, torch.int8), rows, threads=1) - exact).norm()
    rows[:, ::64] = 40.0
    weight[:, ::64] = 0.0
    exact = rows.double() @ weight.double().T
    assert (kernels.linear(pack(weight, None, torch.int8), rows, threads=1) - exact).norm() < 5 * usual


def test_every_family_computes_what_its_twin_in_torch_does(folder: Path) -> None:
    tokens = random_prompts(3, longest=90, vocab=tiny.VOCAB)[2]
    native, twin = load(folder, "float32"), load(folder, "float32", native="off")
    assert isinstance(native.model, NativeLlama)
    assert not isinstance(twin.model, NativeLlama)
    found, expected = (compute(runner, (tokens, 0, range(8))) for runner in (native, twin))
    assert ((found - expected).norm() / expected.norm()).item() < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_narrow_formats_cost_the_kernels_no_more_than_their_twin(folder: Path, dtype: str) -> None:
    """Where torch rounds between its operations depends on the CPU, so both are measured against float32."""
    tokens = random_prompts(3, longest=90, vocab=tiny.VOCAB)[2]
    exact, native, twin = (
        compute(load(folder, format_, switch), (tokens, 0, range(8)))
        for format_, switch in [("float32", "off"), (dtype, "auto"), (dtype, "off")]
    )
    assert 0 < (native - exact).norm() < 1.5 * (twin - exact).norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_and_batch_mates_change_no_bit(folder: Path, dtype: str) -> None:
    """A prompt at once and alone; in two chunks beside others; and token by token, as decoding does."""
    runner = load(folder, dtype)
    long, other = random_prompts(4, longest=230, vocab=tiny.VOCAB)[2:4]
    mine, theirs = range(5, 25), range(40, 60)
    alone = compute(runner, (long, 0, mine))
    half = len(long) // 2 + 3
    compute(runner, (other, 0, theirs), (long[:half], 0, mine))
    mixed = compute(runner, (long[half:], half, mine), (other[:1], len(other), theirs), ([9, 8, 7], 0, range(80, 82)))
    assert torch.equal(alone, mixed)
    for position, token in enumerate(long):
        stepped = compute(runner, ([token], position, mine), (other[:2], len(other), theirs))
    assert torch.equal(alone, stepped)


def test_the_number_of_threads_changes_no_bit(folder: Path) -> None:
    tokens = random_prompts(3, longest=90, vocab=tiny.VOCAB)[2]
    runner = load(folder, "bfloat16")
    try:
        torch.set_num_threads(1)
        alone = compute(runner, (tokens, 0, range(8)))
        torch.set_num_threads(2)
        assert torch.equal(alone, compute(runner, (tokens, 0, range(8))))
    finally:
        torch.set_num_threads(1)


@pytest.fixture
def neighbours() -> Iterator[None]:
    """Other processes that have a CPU for a millisecond, again and again."""
    program = """
import time
while True:
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass
    time.sleep(0.001)
"""
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


@pytest.mark.usefixtures("neighbours")
@pytest.mark.parametrize("dtype", [*(pytest.param(one, marks=pytest.mark.full) for one in DTYPES[:-1]), DTYPES[-1]])
def test_a_thread_that_is_held_up_changes_no_bit(tmp_path: Path, dtype: str) -> None:
    """Its pieces are done by others, and it comes to phases that are over: as many threads as CPUs, and more."""
    runner = load(tiny.save(tiny.build("llama"), tmp_path), dtype)
    tokens = random_prompts(3, longest=90, vocab=tiny.VOCAB)[2]
    parts = (tokens, 0, range(8)), (tokens[:9], 0, range(8, 10))
    try:
        torch.set_num_threads(1)
        alone = compute(runner, *parts)
        for threads in (2, os.cpu_count() or 2, 7):
            torch.set_num_threads(threads)
            assert all(torch.equal(alone, compute(runner, *parts)) for _ in range(100))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("native", ["auto", "off"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loaded_model_keeps_nothing_of_its_file_in_memory(native: str, dtype: str, tmp_path: Path) -> None:
    runner = load(tiny.save(tiny.build("qwen3"), tmp_path), dtype, native)
    assert runner.num_blocks
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("token", [-1, tiny.VOCAB])
def test_a_token_that_is_none_is_refused(folder: Path, token: int) -> None:
    with pytest.raises(IndexError, match="not in the vocabulary"):
        compute(load(folder, "float32"), ([5, token], 0, [0]))


@pytest.mark.full
@pytest.mark.parametrize("name", list(tiny.MODELS))
def test_float32_answers_as_the_reference_alone(name: str, tmp_path: Path) -> None:
    reference = tiny.build(name)
    runner = load(tiny.save(reference, tmp_path), "float32")
    prompts = {f"r{n}": prompt for n, prompt in enumerate(random_prompts(8, longest=150, vocab=tiny.VOCAB))}
    found = run_all(runner, [request(prompt, key) for key, prompt in prompts.items()], max_slots=5, step_tokens=37)
    assert count_near_ties(reference, prompts, found) == 0


def test_without_a_compiler_torch_does_the_work_and_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.WARNING):
        runner = runner_for(folder, Settings(device="cpu", kv_pool_tokens=4096, home=tmp_path), dtype="bfloat16")
    assert not isinstance(runner.model, NativeLlama)
    assert "no C++ compiler" in caplog.text


def test_a_compiler_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bin" / "g++"
    broken.parent.mkdir()
    half = 'while [ $# -gt 1 ]; do [ "$1" = -o ] && echo half > "$2"; shift; done'
    broken.write_text(f"#!/bin/sh\n{half}\necho 'out of luck' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent))
    with pytest.raises(BuildFailed, match="out of luck"):
        build(tmp_path / "native")
    assert [one for one in (tmp_path / "native").iterdir() if one.suffix != ".lock"] == []


@pytest.mark.full
@pytest.mark.parametrize("cpu", _CPUS.get(platform.machine(), ("native",)))
def test_the_compiler_takes_the_source_for_other_cpus(cpu: str) -> None:
    command = [str(_COMPILER), *FLAGS, f"-march={cpu}", "-fsyntax-only", str(SOURCES / "forward.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[:2000]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instruction sets are x86's")
@pytest.mark.full
def test_older_instruction_sets_keep_the_same_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX2; AVX-512 by itself, with products of whole numbers, and of bfloat16 pairs."""
    folder = tiny.save(tiny.build("mistral, sliding window"), tmp_path / "model")
    for march in ("x86-64-v3", "skylake-avx512", "icelake-server", "cooperlake"):
        monkeypatch.setattr("headrace.models.native.build.FLAGS", (*FLAGS, f"-march={march}"))
        older = Kernels(build(tmp_path / march / "native"))
        assert older.isa in {"AVX2", "AVX-512", "AVX-512 BF16"}
        check_promises(folder, tmp_path / march)


def check_promises(folder: Path, home: Path) -> None:
    tokens, other = random_prompts(4, longest=150, vocab=tiny.VOCAB)[2:4]
    for dtype, tolerance in [("float32", 1e-4), ("bfloat16", 0.05), ("int8", 0.1)]:
        native, twin = load(folder, dtype, home=home), load(folder, dtype, native="off")
        alone = compute(native, (tokens, 0, range(12)))
        expected = compute(twin, (tokens, 0, range(12)))
        assert ((alone - expected).norm() / expected.norm()).item() < tolerance
        compute(native, (other[:9], 0, range(20, 30)), (tokens[:70], 0, range(12)))
        assert torch.equal(alone, compute(native, (tokens[70:], 70, range(12)), ([other[9]], 9, range(20, 30))))
