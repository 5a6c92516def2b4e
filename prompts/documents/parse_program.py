"""A program that reads one file from its standard input and writes its text as JSON: ``parse_program.py pdf standard``.

    {"parts": ["text of page 1", …], "has_pages": true}        or        {"error": "…", "code": "invalid_file"}

It is started by ``document_text`` for each file, imports nothing of Headrace, and ends by itself at its limits.
"""

import io
import json
import logging
import re
import resource
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

LIMITS = {
    "standard": ((resource.RLIMIT_CPU, 120), (resource.RLIMIT_AS, 3 << 30)),
    # The libraries of torch alone fill an address space of 3 GiB with files that they hardly read. So the limit is of
    # the memory that the process can write. Its models compute on four threads.
    "docling": ((resource.RLIMIT_CPU, 1200), (resource.RLIMIT_DATA, 6 << 30)),
}
"""The limits of a process by the reader: seconds of CPU time, bytes of memory."""

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


def _divided(begin: str, text: str) -> Parts:
    """Return the parts that begin where ``begin`` matches; nothing but space stands before the first."""
    before, *parts = re.split(begin, text, flags=re.MULTILINE)
    return [part.strip() for part in ([before, *parts] if before.strip() else parts)], True


def by_docling(data: bytes, extension: str) -> Parts:
    """Return each page, slide or sheet of a file as Markdown; Word has no pages. Slides have their notes."""
    from docling.datamodel.base_models import ConversionStatus, DocumentStream, InputFormat
    from docling.document_converter import DocumentConverter
    from docling_core.types.doc import ContentLayer, GroupLabel

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
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kind, reader = sys.argv[1:]
    for limit, most in LIMITS[reader]:
        resource.setrlimit(limit, (most, most))
    # Parsers complain on their loggers, and some print; only the answer goes to the real standard output.
    logging.disable(logging.CRITICAL)
    out, sys.stdout = sys.stdout, sys.stderr
    out.write(json.dumps(answer(kind, sys.stdin.buffer.read(), reader)))
    out.flush()


if __name__ == "__main__":
    main()
