"""Files of Word, PowerPoint and Excel, made by libraries of others and read into a vector store."""

import io
from typing import Any

from docx import Document
from openai import OpenAI
from openpyxl import Workbook
from pptx import Presentation


def word_file() -> bytes:
    """A document with a heading, a paragraph and a table."""
    document: Any = Document()
    document.add_heading("Handbook")
    document.add_paragraph("The miller greases the axle in spring.")
    document.add_table(1, 2).cell(0, 0).text = "Millstones"
    return _saved(document)


def slides_file() -> bytes:
    """A presentation of two slides; the second one has notes, and its text fills more than a passage."""
    slides: Any = Presentation()
    for title in ("The waterwheel", "The granary"):
        slide = slides.slides.add_slide(slides.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = "Grain comes by cart. " * 30
    slide.notes_slide.notes_text_frame.text = "Say that barley is stored upstairs."
    return _saved(slides)


def sheets_file() -> bytes:
    """A workbook of two sheets; the second one fills more than a passage."""
    book: Any = Workbook()
    book.active.title = "Prices"
    book.active.append(["flour", 7])
    people = book.create_sheet("People")
    for number in range(40):
        people.append(["baker", number])
    people.append(["miller", "Annelise"])
    return _saved(book)


def _saved(document: Any) -> bytes:
    content = io.BytesIO()
    document.save(content)
    return content.getvalue()


FILES = {"h.docx": word_file, "s.pptx": slides_file, "p.xlsx": sheets_file}
PLACES = (
    ("axle", "h.docx", None),
    ("millstones", "h.docx", None),
    ("waterwheel", "s.pptx", 1),
    ("barley", "s.pptx", 2),
    ("flour", "p.xlsx", 1),
    ("annelise", "p.xlsx", 2),
)
"""A word, the file that has it, and its slide or sheet."""


def read_office_files(client: OpenAI) -> None:
    """Put the files into a store, with a damaged one, and find each word at its place."""
    whole = {name: make() for name, make in FILES.items()}
    sent = {**whole, "bad.docx": whole["h.docx"][:2000]}
    ids = {client.files.create(file=(name, content), purpose="assistants").id: name for name, content in sent.items()}
    stores = client.vector_stores
    store = stores.create(name="Office")
    short: Any = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
    stores.file_batches.create_and_poll(store.id, file_ids=[*ids], chunking_strategy=short, poll_interval_ms=20)
    states = {ids[one.id]: one.status for one in stores.files.list(store.id)}
    assert states == {**dict.fromkeys(whole, "completed"), "bad.docx": "failed"}
    text_alone: Any = {"hybrid_search": {"embedding_weight": 0, "text_weight": 1}}
    for word, name, page in PLACES:
        found = stores.search(store.id, query=word, ranking_options=text_alone).data[0]
        assert (found.filename, found.model_extra["place"]["page"]) == (name, page), found
    stores.delete(store.id)
