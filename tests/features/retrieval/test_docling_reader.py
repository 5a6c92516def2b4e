"""Documents by docling: the choice of it anywhere, its work where the extra ``docling`` is installed."""

import io
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from headrace.features.retrieval import document_text
from headrace.features.retrieval.document_text import DOCLING, check_reader, read_document
from headrace.features.retrieval.served import FileReader
from headrace.store.errors import InvalidRequest, SettingsError
from headrace.store.settings import load_settings
from tests.e2e.office_files import sheets_file, slides_file, word_file
from tests.features.retrieval.test_document_text import pdf_of

needs_docling = pytest.mark.skipif(find_spec("docling") is None, reason="the extra `docling` is in no lock file")


def test_the_reader_is_chosen_by_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().document_reader == "standard"
    monkeypatch.setenv("HEADRACE_DOCUMENT_READER", "docling")
    assert load_settings().document_reader == DOCLING
    monkeypatch.setenv("HEADRACE_DOCUMENT_READER", "tika")
    with pytest.raises(SettingsError, match=r"HEADRACE_DOCUMENT_READER: .*'docling'"):
        load_settings()


def test_a_missing_extra_is_named_at_the_start_and_for_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(document_text, "find_spec", lambda _name: None)
    check_reader("standard")
    monkeypatch.setenv("HEADRACE_DOCUMENT_READER", "docling")
    unused: Any = None
    with pytest.raises(SettingsError, match=r"headrace\[docling\]"):
        FileReader(unused, unused, load_settings())
    # A module of this name that has nothing, in case docling is installed.
    (tmp_path / "docling.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InvalidRequest, match=r"install headrace\[docling\]") as refused:
        read_document(io.BytesIO(b"PK"), "a.docx", DOCLING)
    assert refused.value.code == "unsupported_file"


def test_the_process_of_docling_downloads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "{\\"parts\\": [\\"$6 $HF_HUB_OFFLINE $DOCLING_DEVICE\\"], \\"has_pages\\": false}"\n'
    )
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    assert read_document(io.BytesIO(b"PK"), "a.docx", DOCLING).text == "docling 1 cpu"


@needs_docling
@pytest.mark.parametrize(
    ("name", "make", "starts"),
    [
        ("h.docx", word_file, ()),
        ("s.pptx", slides_file, ("# The waterwheel", "# The granary")),
        ("p.xlsx", sheets_file, ("## Prices", "## People")),
    ],
)
def test_office_files_have_their_text_and_places(name: str, make: Callable[[], bytes], starts: tuple[str, ...]) -> None:
    found = read_document(io.BytesIO(make()), name, DOCLING)
    assert found.pages == tuple(found.text.index(start) for start in starts)
    words = {"h.docx": "greases the axle", "s.pptx": "barley is stored upstairs", "p.xlsx": "Annelise"}
    assert found.text.index(words[name]) > max(found.pages, default=0)
    with pytest.raises(InvalidRequest, match="damaged") as refused:
        read_document(io.BytesIO(make()[:2000]), name, DOCLING)
    assert refused.value.code == "invalid_file"


@needs_docling
def test_a_pdf_without_models_says_how_they_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DOCLING_ARTIFACTS_PATH", raising=False)
    with pytest.raises(InvalidRequest, match="docling-tools models"):
        read_document(io.BytesIO(pdf_of("The mill")), "a.pdf", DOCLING)
    monkeypatch.setenv("DOCLING_ARTIFACTS_PATH", str(tmp_path))
    with pytest.raises(InvalidRequest, match="DOCLING_ARTIFACTS_PATH") as refused:
        read_document(io.BytesIO(pdf_of("The mill")), "a.pdf", DOCLING)
    assert refused.value.code == "unsupported_file"
