"""The text of a document, with the places of its pages.

Plain text is decoded here. Other formats need parsers of other packages, and a file may be made to hurt them. So
``parse_program`` runs them in a process of its own for one file, in confinement (``prompts.sandbox``).
"""

import json
import resource
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from headrace.prompts.sandbox.process import Program, answer_of
from headrace.store.errors import InvalidRequest, SettingsError
from headrace.store.settings import bare_environment

MOST_BYTES = 128 << 20
"""Of a file."""

MOST_CHARS = 8 << 20
"""Of its text."""

WALL_S = 300.0
"""The timeout of a parser in seconds, for a busy machine."""

LIMITS = {
    "standard": ((resource.RLIMIT_CPU, 120), (resource.RLIMIT_AS, 2 << 30)),
    # The libraries of torch alone fill an address space of 3 GiB with files that they hardly read. So the limit is of
    # the memory that the process can write. Its models compute on four threads.
    "docling": ((resource.RLIMIT_CPU, 1200), (resource.RLIMIT_DATA, 6 << 30)),
}
"""The limits of a process by the reader: seconds of CPU time, bytes of memory."""

_NICE = 10
"""The niceness of a parser: what the engine computes goes before it."""

PARSED = {
    ".htm": "html",
    ".html": "html",
    ".pdf": "pdf",
    ".docx": "word",
    ".pptx": "slides",
    ".xlsx": "sheets",
}
"""The formats that need a parser, by the end of the file's name. All other files must be text."""

STANDARD, DOCLING = "standard", "docling"
"""The readers, values of ``Settings.document_reader``. Both read HTML by the same parser."""

# A process of docling downloads nothing, leaves the GPU to the worker, and its memory does not grow with the cores.
_ENVIRONMENT = {
    STANDARD: {},
    DOCLING: {"HF_HUB_OFFLINE": "1", "DOCLING_DEVICE": "cpu", "OMP_NUM_THREADS": "4", "DOCLING_NUM_THREADS": "4"},
}

PROGRAM = Path(__file__).with_name("parse_program.py")
_BREAK = "\n\n"


@dataclass(frozen=True, slots=True)
class DocumentText:
    """A text, and where its pages begin, in characters; no pages if the format has none.

    A slide of a presentation is a page, and so is a sheet of a workbook.
    """

    text: str
    pages: tuple[int, ...] = ()


def check_reader(reader: str) -> None:
    """Raise SettingsError, with the command that installs it, if a reader's package is not there."""
    if reader == DOCLING and find_spec(DOCLING) is None:
        raise SettingsError(
            "HEADRACE_DOCUMENT_READER=docling needs the package docling: `pip install 'headrace[docling]'`, or unset "
            "the variable"
        )


def read_document(content: BinaryIO, filename: str, reader: str = STANDARD) -> DocumentText:
    """Return the text of a file. Blocks.

    Raises InvalidRequest with the reason (codes ``invalid_file`` and ``unsupported_file``) for a file that is empty,
    damaged, encrypted or too large, and where a parser is not installed.
    """
    kind = PARSED.get(Path(filename).suffix.lower())
    data = content.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise invalid_file(f"the file has more than {MOST_BYTES >> 20} MB: divide it")
    found = DocumentText(decoded(data)) if kind is None else _parsed(data, kind, reader)
    if not found.text.strip():
        raise invalid_file("the file has no text" + (", as a scan, which has only images" if kind == "pdf" else ""))
    if len(found.text) > MOST_CHARS:
        raise invalid_file(f"the file's text has more than {MOST_CHARS} characters: divide it")
    return found


def decoded(data: bytes) -> str:
    """Return a text in UTF-8, or in UTF-16 with a byte order mark. Raises InvalidRequest for anything else."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        known = ", ".join(sorted(PARSED))
        message = f"the file is no text in UTF-8, and its name does not end in one of {known}"
        raise InvalidRequest(message, code="unsupported_file") from None
    if text.count("\0"):
        raise InvalidRequest("the file is binary, not text", code="unsupported_file")
    return text


def invalid_file(message: str) -> InvalidRequest:
    """Return the error of a file whose text cannot be had."""
    return InvalidRequest(message, code="invalid_file")


def _parsed(data: bytes, kind: str, reader: str) -> DocumentText:
    """Return what a parser finds, in a process of its own. Raises InvalidRequest."""
    environment = bare_environment("DOCLING_ARTIFACTS_PATH") if reader == DOCLING else {}
    models = environment.get("DOCLING_ARTIFACTS_PATH")
    program = Program(
        PROGRAM,
        limits=LIMITS[reader],
        environment=environment | _ENVIRONMENT[reader],
        readable=[] if models is None else [models],
        nice=_NICE,
    )
    try:
        answer = answer_of(program, kind, reader, data=data, wall_s=WALL_S)
    except TimeoutError:
        raise invalid_file(f"the file was not read within {WALL_S:.0f} s: divide it, or send its text") from None
    try:
        told = json.loads(answer)
    except ValueError:
        raise invalid_file(
            "the parser was stopped: the file needs too much time or memory, or is damaged: divide it, or send its text"
        ) from None
    if "error" in told:
        raise InvalidRequest(told["error"], code=told["code"])
    # What Postgres cannot store: U+0000, and halves of surrogate pairs, which parsers of PDF may return.
    parts = [part.replace("\0", "").encode(errors="replace").decode() for part in told["parts"]]
    if not told["has_pages"]:
        return DocumentText(_BREAK.join(parts))
    starts, at = [], 0
    for part in parts:
        starts.append(at)
        at += len(part) + len(_BREAK)
    return DocumentText(_BREAK.join(parts), tuple(starts))
