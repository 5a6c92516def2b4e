"""The programs of the README, and of docs/clients.md for Headrace's own client, run as they stand on the fake model."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer
from tests.readme import here

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("page", ["README.md", "docs/clients.md"])
def test_the_programs_run(
    page: str, server: ApiServer, key: str, worker: ScriptedWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / page).read_text().rpartition("\n## Headrace's own client\n")[2]
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    with worker.serve(lambda _payload: ["runs ", "downhill"]):
        for block in blocks:
            exec(here(block, server.url, key).replace("smollm2", "tiny"), names)
        names["client"].close()
    said = capsys.readouterr().out
    assert "runs downhill" in said
    assert ("invalid_value priority req_" in said) == (page == "docs/clients.md")
