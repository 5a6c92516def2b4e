"""The text of documents: plain, HTML, PDF with pages; damaged and foreign files are refused with the reason."""

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook

from headrace.features.retrieval import document_text
from headrace.features.retrieval.document_text import DocumentText, read_document
from headrace.store.errors import InvalidRequest
from tests.refusals import Naming


def pdf_of(*pages: str) -> bytes:
    """A PDF with a line of text on each page."""
    kids = " ".join(f"{3 + 2 * n} 0 R" for n in range(len(pages)))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>"]
    for number, line in enumerate(pages):
        content = f"BT /F1 12 Tf 72 720 Td ({line}) Tj ET"
        font = "/Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << {font} >> "
            f"/Contents {4 + 2 * number} 0 R >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    out, places = "%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{one}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF"
    return f"{out}xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{end}".encode()


def archive_of(name: str, text: str) -> bytes:
    """A ZIP archive with one file, as an office file is one."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, text)
    return made.getvalue()


def test_each_format_gives_its_text() -> None:
    assert read_document(io.BytesIO("\ufeffé\n".encode()), "a.md").text == "é\n"
    assert read_document(io.BytesIO("é".encode("utf-16")), "a.unknown").text == "é"
    found = read_document(io.BytesIO(pdf_of("The mill", "The river")), "a.PDF")
    assert (found.text.split(), found.pages) == (["The", "mill", "The", "river"], (0, found.text.index("The river")))
    page = (
        b"<html><body><nav>Menu</nav><article><p>The mill turns by the water of the river.</p></article></body></html>"
    )
    assert "The mill turns" in read_document(io.BytesIO(page), "a.HTM").text


@pytest.mark.parametrize(
    ("name", "data", "code", "said"),
    [
        ("a.txt", b"\xff\x00\xfe", "unsupported_file", "no text in UTF-8"),
        ("a.txt", b"a\0b", "unsupported_file", "binary"),
        ("a.txt", b" \n", "invalid_file", "no text"),
        ("a.pdf", pdf_of(""), "invalid_file", "a scan"),
        ("a.pdf", b"%PDF-1.4 no more", "invalid_file", "damaged"),
        pytest.param(
            *("a.docx", b"PK\x03\x04 and what was left", "invalid_file", "or no .docx"),
            marks=pytest.mark.full,
        ),
        ("a.xlsx", archive_of("a.txt", "hello"), "invalid_file", "or no .xlsx"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(name: str, data: bytes, code: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_document(io.BytesIO(data), name)
    assert refused.value.code == code
    assert said in refused.value.message


def test_a_parser_that_is_stopped_fails_its_file_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InvalidRequest, match="stopped"):
        read_document(io.BytesIO(pdf_of("x")), "a.pdf")


def workbook_of(*places: str) -> bytes:
    """A workbook with a cell at each of the places."""
    book: Any = Workbook()
    for place in places:
        book.active[place] = "flour"
    made = io.BytesIO()
    book.save(made)
    return made.getvalue()


def test_a_workbook_is_bounded_by_what_its_cells_reach_over(monkeypatch: pytest.MonkeyPatch) -> None:
    near = read_document(io.BytesIO(workbook_of("A1", "C9")), "a.xlsx")
    assert near.text.count("flour") == 2
    monkeypatch.setattr(document_text, "WALL_S", 60.0)  # without the bound it takes minutes
    for places in (("A1", "XFD1048576"), ("XFD40",)):
        with pytest.raises(InvalidRequest) as refused:
            read_document(io.BytesIO(workbook_of(*places)), "a.xlsx")
        assert refused.value.code == "invalid_file"
        assert "send it as CSV" in refused.value.message


def told(monkeypatch: pytest.MonkeyPatch, folder: Path, **answer: object) -> DocumentText:
    """The document that a parser makes of a file if it tells this."""
    program = folder / "program.py"
    program.write_text(f"print({json.dumps(answer)!r})")
    monkeypatch.setattr(document_text, "PROGRAM", program)
    return read_document(io.BytesIO(b"PK"), "a.b.XLSX")


def test_what_a_parser_tells_is_joined_with_the_places_of_its_pages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = told(monkeypatch, tmp_path, parts=["a\0b", "", "\ud800c"], has_pages=True)
    assert found == DocumentText("ab\n\n\n\n?c", (0, 4, 6))
    assert told(monkeypatch, tmp_path, parts=["a", "b"], has_pages=False) == DocumentText("a\n\nb", ())
    with pytest.raises(InvalidRequest) as refused:
        told(monkeypatch, tmp_path, error="it is broken", code="unsupported_file")
    assert (refused.value.message, refused.value.code) == ("it is broken", "unsupported_file")


def test_the_sizes_and_the_time_of_a_file_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = (document_text.MOST_BYTES, document_text.MOST_CHARS, document_text.WALL_S)
    assert bounds == (128 << 20, 8 << 20, 300.0)
    monkeypatch.setattr(document_text, "MOST_BYTES", 3 << 20)
    monkeypatch.setattr(document_text, "MOST_CHARS", 4)
    assert read_document(io.BytesIO("éééé".encode()), "a").text == "éééé"
    for data, said in (
        (b"x" * 5, Naming("4 characters")),
        (b"x" * ((3 << 20) + 1), Naming("3 MB")),
    ):
        with pytest.raises(InvalidRequest) as refused:
            read_document(io.BytesIO(data), "a.txt")
        assert (refused.value.message, refused.value.code) == (said, "invalid_file")


def test_a_parser_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import time\ntime.sleep(600)")
    monkeypatch.setattr(document_text, "PROGRAM", program)
    monkeypatch.setattr(document_text, "WALL_S", 0.5)
    with pytest.raises(InvalidRequest, match="not read within") as refused:
        read_document(io.BytesIO(b"%PDF"), "a.pdf")
    assert refused.value.code == "invalid_file"
