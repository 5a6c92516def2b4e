"""A stack on SmolLM2 for each file of this folder, gone before the tests of other folders."""

from collections.abc import Iterator

import pytest

from tests.e2e.running import Running, running_smollm2


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    # The reference is float32.
    with running_smollm2({"HEADRACE_LEASE_S": "5", "HEADRACE_SWEEP_S": "0.5", "HEADRACE_DTYPE": "float32"}) as running:
        yield running
