"""One engine of the contract for each test that asks for a ``rig``.

``--vllm ENVIRONMENT`` adds a real vLLM server, started from a virtual environment with vLLM: ``make engines``.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models.external.engines import ENGINES, Rig
from tests.models.external.real_vllm import RealVllm, real_vllm

_REAL = "vllm, real"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vllm", type=Path, help="a virtual environment with vLLM, for the contract of a real server")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rig" in metafunc.fixturenames:
        real = [_REAL] if metafunc.config.getoption("--vllm", None) else []
        metafunc.parametrize("rig", [*ENGINES, *real], indirect=True)


@pytest.fixture(scope="session")
def real_server(request: pytest.FixtureRequest, smollm2: Path) -> Iterator[RealVllm]:
    server = RealVllm(request.config.getoption("--vllm") / "bin" / "python", smollm2)
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
