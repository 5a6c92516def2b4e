"""The parsers of documents in this process: the text of each format, and the error of each failure."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from markitdown import MarkItDown
from pypdf import PdfReader, PdfWriter

from headrace.features.retrieval import parse_program
from headrace.features.retrieval.parse_program import ModelsMissing, Unreadable, answer
from tests.e2e.office_files import sheets_file, slides_file, word_file
from tests.features.retrieval.test_document_text import pdf_of
from tests.refusals import Naming
from tests.stand_ins import stand_in

SENTENCE = "The mill turns by the water of the <a href='https://a.example'>river</a>, and grinds the corn. "
PAGE = (
    f"<html><body><nav>Menu</nav><article><h2>Mill</h2><p>{SENTENCE * 4}</p><table><tr><td>flour</td><td>7</td></tr>"
    "</table></article><footer>Imprint</footer></body></html>"
)


def locked(password: str) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf_of("one", "two"))))
    writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_an_office_file_becomes_markdown_with_its_places() -> None:
    assert answer("word", word_file(), "standard") == {
        "parts": ["# Handbook\n\nThe miller greases the axle in spring.\n\n|  |  |\n| --- | --- |\n| Millstones |  |"],
        "has_pages": False,
    }
    cart = "Grain comes by cart. " * 29 + "Grain comes by cart."
    assert answer("slides", slides_file(), "standard") == {
        "parts": [
            f"# The waterwheel\n{cart}",
            f"# The granary\n{cart}\n\n### Notes:\nSay that barley is stored upstairs.",
        ],
        "has_pages": True,
    }
    people = "\n".join(["| baker | 0 |", "| --- | --- |", *(f"| baker | {number} |" for number in range(1, 40))])
    assert answer("sheets", sheets_file(), "standard") == {
        "parts": ["## Prices\n| flour | 7 |\n| --- | --- |", f"## People\n{people}\n| miller | Annelise |"],
        "has_pages": True,
    }


def test_a_web_page_is_its_main_text_or_all_of_it() -> None:
    sentences = ("The mill turns by the water of the river, and grinds the corn. " * 4).strip()
    main = f"## Mill\n\n{sentences}\n\n| flour | 7 |"
    assert answer("html", PAGE.encode(), "standard") == {"parts": [main], "has_pages": False}
    short = answer("html", b"<html><body><nav>Menu</nav><p>The mill.</p></body></html>", "standard")
    assert short == {"parts": ["Menu\nThe mill."], "has_pages": False}
    assert answer("html", b"", "standard") == {"parts": [""], "has_pages": False}


def test_a_pdf_has_pages_and_may_need_a_password() -> None:
    assert answer("pdf", pdf_of("one", "two"), "standard") == {"parts": ["one", "two"], "has_pages": True}
    assert answer("pdf", locked(""), "standard") == {"parts": ["one", "two"], "has_pages": True}
    assert answer("pdf", locked("secret"), "standard") == {"error": Naming("password"), "code": "invalid_file"}


def test_what_stands_before_the_first_slide_is_a_page_unless_it_is_space(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, parts in (
        (
            "\n<!-- Slide number: 1 -->\na\n<!-- Slide number: 22 -->\n\nb <!-- Slide number: 3 -->\n",
            ["a", "b <!-- Slide number: 3 -->"],
        ),
        ("x\n<!-- Slide number: 1 -->\n", ["x", ""]),
        ("", []),
    ):
        monkeypatch.setattr(MarkItDown, "convert_stream", lambda *_, text=text, **__: stand_in(markdown=text))
        assert parse_program.slides(b"") == (parts, True)


def _raising(error: Exception) -> Callable[[bytes], Any]:
    def parse(_data: bytes) -> Any:
        raise error

    return parse


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (
            ModuleNotFoundError("no", name="pypdf"),
            Naming("(pypdf)", "headrace[x]"),
            "unsupported_file",
        ),
        (ModelsMissing("no models"), "no models", "unsupported_file"),
        (Unreadable("x" * 501), "x" * 500, "invalid_file"),
        (MemoryError(), Naming("memory"), "invalid_file"),
        (ValueError("secret text"), "the file is damaged: ValueError", "invalid_file"),
    ],
)
def test_each_failure_has_its_words_and_quotes_no_file(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str, code: str
) -> None:
    monkeypatch.setitem(parse_program.READERS["standard"], "pdf", (_raising(error), "headrace[x]"))
    assert answer("pdf", b"", "standard") == {"error": said, "code": code}


def test_each_format_names_the_extra_that_has_its_parser() -> None:
    extras = {
        reader: {kind: extra for kind, (_, extra) in parsers.items()}
        for reader, parsers in parse_program.READERS.items()
    }
    office = dict.fromkeys(("word", "slides", "sheets"), "headrace[office]")
    standard = dict.fromkeys(("pdf", "html"), "headrace[retrieval]") | office
    assert extras["standard"] == standard
    assert extras["docling"] == dict.fromkeys(standard, "headrace[docling]") | {"html": standard["html"]}
