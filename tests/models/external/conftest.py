"""One engine of the contract for each test that asks for a ``rig``.

``--vllm ENVIRONMENT`` adds a real vLLM server, started from a virtual environment with vLLM; ``--vllm install`` makes
the environment. ``make engines`` does it. ``--sglang ENVIRONMENT`` adds a real SGLang server.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.venvs import environment
from tests.models.external.engines import ENGINES, Rig
from tests.models.external.real_sglang import RealSglang, real_sglang
from tests.models.external.real_vllm import RealVllm, real_vllm, tiny_model
from tests.processes import none_left

_REAL = {"vllm, real": "--vllm", "sglang, real": "--sglang"}
_SERVERS = {"vllm, real": "vllm_server", "sglang, real": "sglang_server"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vllm", help="a virtual environment with vLLM, or install, for the contract of a real server")
    parser.addoption("--sglang", type=Path, help="a virtual environment with SGLang, likewise")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rig" in metafunc.fixturenames:
        real = [name for name, option in _REAL.items() if metafunc.config.getoption(option, None)]
        # The first one waits for its server, which starts slowly on a busy machine; some start it again.
        slow = [pytest.param(name, marks=pytest.mark.timeout(1200)) for name in real]
        # Variants of an engine that is there; only with --full.
        variants = {"vllm without scale-out", "sglang deterministic"}
        engines = [pytest.param(name, marks=[pytest.mark.full] if name in variants else []) for name in ENGINES]
        metafunc.parametrize("rig", [*engines, *slow], indirect=True)


@pytest.fixture(scope="session")
def vllm_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm]:
    where = request.config.getoption("--vllm")
    programs = environment("vllm", print) if where == "install" else Path(where) / "bin"
    server = RealVllm(programs / "python", tiny_model(tmp_path_factory.mktemp("tiny")))
    yield server
    server.close()


@pytest.fixture(scope="session")
def sglang_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSglang]:
    programs = request.config.getoption("--sglang") / "bin"
    server = RealSglang(programs / "python", tiny_model(tmp_path_factory.mktemp("tiny")))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_process_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """As for every test, but the real server stays, and a test may start it again."""
    name = request.node.callspec.params["rig"] if "rig" in request.fixturenames else None
    server: RealVllm | None = request.getfixturevalue(_SERVERS[name]) if name in _SERVERS else None
    with none_left(lambda: {server.pid} if server else set()):
        yield


@pytest.fixture
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    match request.param:
        case "vllm, real":
            made = real_vllm(request.getfixturevalue("vllm_server"))
        case "sglang, real":
            made = real_sglang(request.getfixturevalue("sglang_server"))
        case name:
            made = ENGINES[name]()
    with made as one:
        yield one
