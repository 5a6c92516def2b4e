"""The Python programs of docs/client.md and of the README run as they stand, but on the fake model."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer
from tests.readme import here

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("page", ["README.md", "docs/client.md"])
def test_the_programs_run(
    page: str, server: ApiServer, key: str, worker: ScriptedWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    with worker.serve(lambda _payload: ["runs ", "downhill"]):
        for block in blocks:
            exec(here(block, server.url, key).replace("smollm2", "tiny"), names)
        names["client"].close()
    said = capsys.readouterr().out
    assert "runs downhill" in said
    assert ("invalid_value priority req_" in said) == (page == "docs/client.md")
