"""One engine of the contract for each test that asks for a ``rig``.

``--vllm ENVIRONMENT`` adds a real vLLM server, started from a virtual environment with vLLM; ``--vllm install`` makes
the environment. ``make engines`` does it.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.venvs import environment
from tests.models.external.engines import ENGINES, Rig
from tests.models.external.real_vllm import RealVllm, real_vllm

_REAL = "vllm, real"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vllm", help="a virtual environment with vLLM, or install, for the contract of a real server")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rig" in metafunc.fixturenames:
        real = [_REAL] if metafunc.config.getoption("--vllm", None) else []
        metafunc.parametrize("rig", [*ENGINES, *real], indirect=True)


@pytest.fixture(scope="session")
def real_server(request: pytest.FixtureRequest, smollm2: Path) -> Iterator[RealVllm]:
    where = request.config.getoption("--vllm")
    programs = environment("vllm", print) if where == "install" else Path(where) / "bin"
    server = RealVllm(programs / "python", smollm2)
    yield server
    server.close()


@pytest.fixture
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    if request.param != _REAL:
        with ENGINES[request.param]() as made:
            yield made
        return
    server: RealVllm = request.getfixturevalue("real_server")
    with real_vllm(server, request.getfixturevalue("smollm2")) as made:
        yield made
