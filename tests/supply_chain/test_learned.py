"""Data from other projects: licences, libraries of the console."""

import json
from pathlib import Path

import pytest

from supply_chain import licences, vendored
from tests.refusals import Naming


@pytest.mark.uses("console")
def test_the_list_of_licences_is_written_and_the_first_file_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(licences, "LIST", tmp_path / "licences.md")
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    first.write_text(json.dumps([{"Name": "Six", "License": "Apache Software License"}]))
    found = [{"Name": name, "License": "MIT License"} for name in licences.locked()]
    second.write_text(json.dumps(found))
    assert licences.main(["write", str(first), str(second)]) == 0
    listed = licences.read_list(licences.LIST.read_text())
    assert [listed[name][1] for name in ("six", "accelerate", "colorama")] == ["Apache-2.0", "MIT", "BSD-3-Clause"]
    assert licences.main(["check"]) == 0
    licences.LIST.write_text(licences.LIST.read_text().replace("Libraries of the console", "Libraries"))
    assert licences.main(["check"]) == 1
    assert capsys.readouterr().err == Naming("docs/licences.md: ", "console", "`make licences`")
    second.write_text(json.dumps([one | {"License": "UNKNOWN"} for one in found]))
    assert licences.main(["write", str(second)]) == 1
    assert "accelerate" in capsys.readouterr().err


@pytest.mark.uses("console")
def test_a_changed_library_of_the_console_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(vendored.complaints(vendored.section())) == []
    for file in vendored.VENDORED:
        (tmp_path / file.name).write_bytes(b"changed")
    monkeypatch.setattr(vendored, "FOLDER", tmp_path)
    assert list(vendored.complaints(vendored.section())) == [
        Naming("htm-preact.js", "htm 3.1.1"),
        Naming("uplot.js", "uplot 1.6.32"),
        Naming("uplot.css", "uplot 1.6.32"),
    ]
