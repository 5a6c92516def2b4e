"""A program that reads one file from its standard input and writes its text as JSON: ``python parse_program.py pdf``.

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

CPU_S = 120
MEMORY_BYTES = 3 << 30

Parts = tuple[Sequence[str], bool]
"""The parts of a text, and whether they are pages."""


class Unreadable(Exception):
    """The file cannot be read; the message says why."""


def pdf(data: bytes) -> Parts:
    """Return the text of each page."""
    from pypdf import PdfReader  # noqa: PLC0415 - a parser is imported only in a process that needs it
    from pypdf.errors import PyPdfError  # noqa: PLC0415 - the same

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("the PDF needs a password")
        return [page.extract_text() for page in reader.pages], True
    except PyPdfError as error:
        raise Unreadable(f"the PDF is damaged: {error}") from error


def html(data: bytes) -> Parts:
    """Return the main text of a web page as Markdown, without menus; all of its text if there is no main part."""
    from trafilatura import extract, html2txt  # noqa: PLC0415 - a parser is imported only in a process that needs it

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
    from markitdown import MarkItDown, StreamInfo  # noqa: PLC0415 - a parser is imported only in a process that needs it

    reader = MarkItDown(enable_plugins=False)
    return str(reader.convert_stream(io.BytesIO(data), stream_info=StreamInfo(extension=extension)).markdown)


def _divided(begin: str, text: str) -> Parts:
    """Return the parts that begin where ``begin`` matches; nothing but space stands before the first."""
    before, *parts = re.split(begin, text, flags=re.MULTILINE)
    return [part.strip() for part in ([before, *parts] if before.strip() else parts)], True


PARSERS: dict[str, tuple[Callable[[bytes], Parts], str]] = {
    "pdf": (pdf, "headrace[retrieval]"),
    "html": (html, "headrace[retrieval]"),
    "word": (word, "headrace[office]"),
    "slides": (slides, "headrace[office]"),
    "sheets": (sheets, "headrace[office]"),
}


def answer(kind: str, data: bytes) -> dict[str, object]:
    """Return the text of a file, or the error."""
    parse, extra = PARSERS[kind]
    try:
        parts, has_pages = parse(data)
    except ModuleNotFoundError as error:
        message = f"no parser for this format is installed here ({error.name}): install {extra} beside the worker"
        return {"error": message, "code": "unsupported_file"}
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
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # Parsers complain on their loggers, and some print; only the answer goes to the real standard output.
    logging.disable(logging.CRITICAL)
    out, sys.stdout = sys.stdout, sys.stderr
    out.write(json.dumps(answer(sys.argv[1], sys.stdin.buffer.read())))
    out.flush()


if __name__ == "__main__":
    main()
