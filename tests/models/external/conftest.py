"""One engine of the contract for each test that asks for a ``rig``.

``--vllm ENVIRONMENT`` adds a real vLLM server, started from a virtual environment with vLLM; ``--vllm install`` makes
the environment. ``make engines`` does it.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.venvs import environment
from tests.models.external.engines import ENGINES, Rig
from tests.models.external.real_vllm import RealVllm, real_vllm, tiny_model
from tests.processes import none_left

_REAL = "vllm, real"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vllm", help="a virtual environment with vLLM, or install, for the contract of a real server")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rig" in metafunc.fixturenames:
        real = [_REAL] if metafunc.config.getoption("--vllm", None) else []
        metafunc.parametrize("rig", [*ENGINES, *real], indirect=True)


@pytest.fixture(scope="session")
def real_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm]:
    where = request.config.getoption("--vllm")
    programs = environment("vllm", print) if where == "install" else Path(where) / "bin"
    server = RealVllm(programs / "python", tiny_model(tmp_path_factory.mktemp("tiny")))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_process_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """As for every test, but the real server stays, and a test may start it again."""
    is_real = "rig" in request.fixturenames and request.node.callspec.params["rig"] == _REAL
    server: RealVllm | None = request.getfixturevalue("real_server") if is_real else None
    with none_left(lambda: {server.pid} if server else set()):
        yield


@pytest.fixture
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    if request.param != _REAL:
        with ENGINES[request.param]() as made:
            yield made
        return
    with real_vllm(request.getfixturevalue("real_server")) as made:
        yield made
