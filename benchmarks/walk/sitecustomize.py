"""Notes the functions that a process enters while the file ``recording`` is beside this one.

Python imports it at its start: ``__main__`` copies it to a folder of the run, which it names in PYTHONPATH.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).parent
_entered: set[tuple[str, str]] | None = None


def _enter(frame: FrameType, event: str, _arg: Any) -> None:
    if _entered is not None and event == "call":
        _entered.add((frame.f_code.co_filename, frame.f_code.co_qualname))


def _watch() -> None:
    global _entered
    recording = ""
    while True:
        time.sleep(0.02)
        try:
            wanted = (HERE / "recording").read_text()
        except FileNotFoundError:
            wanted = ""
        if wanted == recording:
            continue
        noted, _entered = _entered, set() if wanted else None
        if noted:
            (HERE / f"{recording}.{os.getpid()}.json").write_text(json.dumps(list(noted)))
        recording = wanted


if (HERE / "up.log").exists():
    threading.Thread(target=_watch, daemon=True).start()
    sys.setprofile(_enter)
    threading.setprofile(_enter)
