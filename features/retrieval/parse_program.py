"""A program that reads one file from its standard input and writes its text as JSON: ``parse_program.py pdf standard``.

    {"parts": ["text of page 1", …], "has_pages": true}        or        {"error": "…", "code": "invalid_file"}

It is started by ``document_text`` for each file, in confinement, and imports nothing of Headrace.
"""

import io
import json
import logging
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial, reduce
from typing import IO, Any
from xml.parsers import expat

MOST_CELLS = 500_000
"""Of all sheets of a workbook, with the empty cells between others: in Markdown they are over 3 MB, which take half a
minute and a GiB."""

_PLACE = re.compile("([A-Z]{1,3})([0-9]{1,7})")

Parts = tuple[Sequence[str], bool]
"""The parts of a text, and whether they are pages."""


class Unreadable(Exception):
    """The file cannot be read; the message says why."""


class ModelsMissing(Exception):
    """The models that this format needs are not on this machine; the message says how they come."""


def pdf(data: bytes) -> Parts:
    """Return the text of each page."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("the PDF needs a password")
        return [page.extract_text() for page in reader.pages], True
    except PyPdfError as error:
        raise Unreadable(f"the PDF is damaged: {error}") from error


def html(data: bytes) -> Parts:
    """Return the main text of a web page as Markdown, without menus; all of its text if there is no main part."""
    from trafilatura import extract, html2txt

    found = extract(data, output_format="markdown", include_tables=True, include_links=False, favor_recall=True)
    return [found or html2txt(data) or ""], False


def word(data: bytes) -> Parts:
    """Return a document of Word as Markdown."""
    return [_markdown(data, ".docx")], False


def slides(data: bytes) -> Parts:
    """Return each slide of a presentation of PowerPoint as Markdown, with its notes."""
    return _divided(r"^<!-- Slide number: \d+ -->$", _markdown(data, ".pptx"))


def sheets(data: bytes) -> Parts:
    """Return each sheet of a workbook of Excel as Markdown, under its name."""
    check_cells(data)
    return _divided(r"^(?=## )", _markdown(data, ".xlsx"))


def _markdown(data: bytes, extension: str) -> str:
    from markitdown import FileConversionException, MarkItDown, StreamInfo, UnsupportedFormatException
    from markitdown.converters import DocxConverter, PptxConverter, XlsxConverter

    # Only the parser of the format: markitdown's others would take a damaged file for a text, or open it as an archive.
    parsers: dict[str, Any] = {".docx": DocxConverter, ".pptx": PptxConverter, ".xlsx": XlsxConverter}
    reader = MarkItDown(enable_builtins=False, enable_plugins=False)
    reader.register_converter(parsers[extension]())
    try:
        return str(reader.convert_stream(io.BytesIO(data), stream_info=StreamInfo(extension=extension)).markdown)
    except (FileConversionException, UnsupportedFormatException) as error:
        raise Unreadable(f"the file is damaged, encrypted, or no {extension} as its name says") from error


def check_cells(data: bytes) -> None:
    """Raise Unreadable for a workbook whose sheets reach over more than MOST_CELLS.

    Parsers make a table of each sheet: two cells, in the first and the last corner, would be 17 thousand million. Only
    the places of cells are read here, as they stand in the file.
    """
    num_cells = 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    num_cells += _reach(member)
                if num_cells > MOST_CELLS:
                    raise Unreadable(
                        f"the sheets reach over more than {MOST_CELLS} cells, with the empty ones between others: "
                        "delete what stands far from the table, divide the file, or send it as CSV"
                    )
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError):
        return  # The parser says what is wrong.


def _reach(member: IO[bytes]) -> int:
    """Return the number of cells from the first one of a sheet to its last row and column; 0 for another part."""
    last, at = [0, 0], [0, 0]

    def see(name: str, attributes: dict[str, str]) -> None:
        match name.rpartition(":")[2]:
            case "row":
                row = attributes.get("r", "")
                at[:] = [int(row) if row.isdecimal() else at[0] + 1, 0]
            case "c":
                place = _PLACE.fullmatch(attributes.get("r", ""))
                if place is None:
                    at[1] += 1
                else:
                    at[:] = [int(place[2]), reduce(lambda number, letter: number * 26 + ord(letter) - 64, place[1], 0)]
                last[:] = map(max, last, at)
            case _:
                pass

    reader = expat.ParserCreate()
    reader.StartElementHandler = see
    with suppress(expat.ExpatError):  # another part of the workbook, as a picture
        reader.ParseFile(member)
    return last[0] * last[1]


def _divided(begin: str, text: str) -> Parts:
    """Return the parts that begin where ``begin`` matches; nothing but space stands before the first."""
    before, *parts = re.split(begin, text, flags=re.MULTILINE)
    return [part.strip() for part in ([before, *parts] if before.strip() else parts)], True


def by_docling(data: bytes, extension: str) -> Parts:
    """Return each page, slide or sheet of a file as Markdown; Word has no pages. Slides have their notes."""
    from docling.datamodel.base_models import ConversionStatus, DocumentStream, InputFormat
    from docling.document_converter import DocumentConverter
    from docling_core.types.doc import ContentLayer, GroupLabel

    if extension == "xlsx":
        check_cells(data)
    converter = DocumentConverter(allowed_formats=[InputFormat(extension)])
    if extension == "pdf":
        _load_models(converter)
    source = DocumentStream(name=f"document.{extension}", stream=io.BytesIO(data))
    converted = converter.convert(source)
    if converted.status != ConversionStatus.SUCCESS:
        raise Unreadable("docling could read only some of the file's pages")
    document = converted.document
    # As the file has it: escapes and placeholders of images would be words that no question has.
    markdown = partial(
        document.export_to_markdown,
        included_content_layers={ContentLayer.BODY, ContentLayer.NOTES},
        escape_html=False,
        escape_underscores=False,
        image_placeholder="",
    )
    if not document.pages:
        return [markdown()], False
    parts = [markdown(page_no=number) for number in sorted(document.pages)]
    names = [group.name for group in document.groups if group.label == GroupLabel.SHEET]
    if names:
        parts = [part and f"## {name}\n\n{part}" for name, part in zip(names, parts, strict=True)]
    return parts, True


def _load_models(converter: Any) -> None:
    """Load docling's models of PDF from its folder. Without the folder its OCR would download some."""
    from docling.datamodel.base_models import InputFormat
    from docling.datamodel.settings import settings

    remedy = "run `docling-tools models download -o FOLDER` beside the worker, and set DOCLING_ARTIFACTS_PATH=FOLDER"
    if settings.artifacts_path is None:
        raise ModelsMissing(f"docling has no models for PDF here: {remedy}")
    try:
        converter.initialize_pipeline(InputFormat.PDF)
    except MemoryError:
        raise
    except Exception as error:  # each library of docling has exceptions of its own for a missing or damaged file
        raise ModelsMissing(f"docling's models for PDF do not load ({type(error).__name__}): {remedy}") from error


PARSERS: dict[str, tuple[Callable[[bytes], Parts], str]] = {
    "pdf": (pdf, "headrace[retrieval]"),
    "html": (html, "headrace[retrieval]"),
    "word": (word, "headrace[office]"),
    "slides": (slides, "headrace[office]"),
    "sheets": (sheets, "headrace[office]"),
}

_DOCLING = {"pdf": "pdf", "word": "docx", "slides": "pptx", "sheets": "xlsx"}
READERS = {
    "standard": PARSERS,
    "docling": PARSERS
    | {kind: (partial(by_docling, extension=end), "headrace[docling]") for kind, end in _DOCLING.items()},
}


def answer(kind: str, data: bytes, reader: str) -> dict[str, object]:
    """Return the text of a file, or the error."""
    parse, extra = READERS[reader][kind]
    try:
        parts, has_pages = parse(data)
    except ModuleNotFoundError as error:
        message = f"no parser for this format is installed here ({error.name}): install {extra} beside the worker"
        return {"error": message, "code": "unsupported_file"}
    except ModelsMissing as error:
        return {"error": str(error), "code": "unsupported_file"}
    except Unreadable as error:
        return {"error": str(error)[:500], "code": "invalid_file"}
    except MemoryError:
        return {"error": "the file needs too much memory", "code": "invalid_file"}
    except Exception as error:  # noqa: BLE001 - parsers raise anything; the text may quote the file, the class does not
        return {"error": f"the file is damaged: {type(error).__name__}", "code": "invalid_file"}
    return {"parts": parts, "has_pages": has_pages}


def main() -> None:
    """Read, parse and write."""
    kind, reader = sys.argv[1:]
    # Parsers complain on their loggers, and some print; only the answer goes to the real standard output.
    logging.disable(logging.CRITICAL)
    out, sys.stdout = sys.stdout, sys.stderr
    out.write(json.dumps(answer(kind, sys.stdin.buffer.read(), reader)))
    out.flush()


if __name__ == "__main__":
    main()
