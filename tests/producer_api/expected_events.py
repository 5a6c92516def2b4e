"""Expected events of long streams: JSON files in a folder ``expected_events`` beside the test, one for each case."""

import json
from pathlib import Path
from typing import Any


def expected_events(test_file: str, case: str) -> dict[str, Any]:
    """The lists of events (or output items) of the case, by the name of the step that makes them."""
    found: dict[str, Any] = json.loads((Path(test_file).parent / "expected_events" / f"{case}.json").read_text())
    return found
