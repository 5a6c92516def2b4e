"""The work of a job that reads a file into a vector store: text, passages, their tokens; the engine makes the vectors.

    file ──▶ text (a process of its own) ──▶ the tenant's policy ──▶ passages ──▶ engine ──▶ rows, with the job's end

The policy sees the text as one input, before it is cut: no value is hidden at the end of a passage.

A few files are read at the same time, by turns of the tenants, and meanwhile use nothing of the engine. A job that
waits too long for its turn goes back to the queue, as one that waits for an adapter does.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from itertools import pairwise
from typing import Any

from headrace.features.encoders.embed.inputs import Embedder, text_tokens
from headrace.features.encoders.embed.model import EmbedModel
from headrace.features.files import files
from headrace.features.files.blob_storage import Blobs, open_blobs
from headrace.features.retrieval.chunking import page_at, spans, token_starts
from headrace.features.retrieval.document_text import DocumentText, check_reader, invalid_file, read_document
from headrace.features.retrieval.ingest_order import (
    MAX_PASSAGES,
    IngestOutput,
    IngestPayload,
    IngestSource,
    is_ingest,
    passage_prompt,
)
from headrace.features.retrieval.passages import FilePassages, Passage
from headrace.features.retrieval.searched_steps import searched_job
from headrace.models.engine.requests import EngineStopped
from headrace.prompts.sandbox.turns import SandboxBusy, Turns
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.db.database import Database
from headrace.store.errors import NotFound
from headrace.store.jobs.claims import Claim
from headrace.store.payloads.job_payload import PinnedPolicy, read_payload
from headrace.store.payloads.step_payload import SEARCH
from headrace.store.settings import Settings
from headrace.workers.runs.output_guard import JobGuards, open_guards
from headrace.workers.tasks.encoding import EncodeJob, EncoderModel, ReadClaim, ServedPart
from headrace.workers.tasks.task_model import WorkContext

MOST_AT_ONCE = 3
"""Files that a worker reads at the same time: each may take a core and some GiB of memory."""

WAIT_S = 5.0
"""How long a job waits for its turn before it goes back to the queue: meanwhile it may be cancelled, or become late."""


class ReadersBusy(EngineStopped):
    """Other files were read for too long. The job goes back to the queue and is not charged."""

    code = "handed_back"


class FileReader:
    """Reads the files of jobs for one embedding model. Opens the file storage with the first of them.

    Raises SettingsError if the reader that the settings name is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, embedder: Embedder, settings: Settings) -> None:
        check_reader(settings.document_reader)
        self._tokenizer = tokenizer
        self._embedder = embedder
        self._settings = settings
        self._guards: JobGuards | None = None
        self._turns = Turns(MOST_AT_ONCE)

    @cached_property
    def _blobs(self) -> Blobs:
        return open_blobs(self._settings)

    def read(
        self,
        claim: Claim,
        db: Database,
        outside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> EncodeJob:
        """Return the job of a claim. ``outside``: what is entered while its file is read.

        Raises InvalidRequest with the reason for a bad file, NotFound, Unavailable, ReadersBusy.
        """
        payload = read_payload(IngestPayload, claim.payload)
        source = payload.ingest
        with self._turn(claim.tenant_id), outside():
            document = self._document(claim.tenant_id, source, db)
        document = self._policed(claim.tenant_id, payload.policy, document, db)
        passages = self._passages(document, source)
        prompt = passage_prompt(self._embedder)
        inputs = tuple(
            text_tokens(self._tokenizer, self._embedder, prompt + passage.text, "file", truncate=True)[0]
            for passage in passages
        )
        made = IngestOutput(
            vector_store_id=source.vector_store_id,
            file_id=source.file_id,
            passages=len(passages),
            characters=len(document.text),
        ).model_dump()

        def output(_vectors: Sequence[bytes]) -> dict[str, Any]:
            return made

        def stored(vectors: Sequence[bytes]) -> FilePassages:
            return FilePassages(source.ticket, claim.tenant_id, passages, tuple(vectors))

        return EncodeJob(inputs, None, output, stored)

    @contextmanager
    def _turn(self, tenant_id: str) -> Iterator[None]:
        try:
            with self._turns.turn(tenant_id, wait_s=WAIT_S):
                yield
        except SandboxBusy as error:
            raise ReadersBusy(f"other files are read here: {error}") from None

    def _document(self, tenant_id: str, source: IngestSource, db: Database) -> DocumentText:
        try:
            file = files.get(db, tenant_id, source.file_id)
        except NotFound:
            message = f"the file {source.file_id} was deleted, or has expired, before it was read"
            raise NotFound(message, code="file_gone") from None
        with self._blobs.open(file.digest) as content:
            return read_document(content, source.filename, self._settings.document_reader)

    def _policed(
        self, tenant_id: str, pinned: PinnedPolicy | None, document: DocumentText, db: Database
    ) -> DocumentText:
        """Return the text as the tenant's policy lets it be stored. Raises InvalidRequest if it does not."""
        if pinned is None:
            return document
        self._guards = self._guards or open_guards(db)
        # Page by page, so that pages keep their places.
        bounds = [*document.pages, len(document.text)] if document.pages else [0, len(document.text)]
        parts = [document.text[begin:end] for begin, end in pairwise(bounds)]
        texts = self._guards.texts(tenant_id, pinned, parts, "this file")
        starts, at = [], 0
        for part in texts:
            starts.append(at)
            at += len(part)
        return DocumentText("".join(texts), tuple(starts) if document.pages else ())

    def _passages(self, document: DocumentText, source: IngestSource) -> tuple[Passage, ...]:
        text = document.text
        found: list[Passage] = []
        for span in spans(text, token_starts(self._tokenizer, text), source.chunk_tokens, source.overlap_tokens):
            if len(found) == MAX_PASSAGES:
                raise invalid_file(f"the file has more than {MAX_PASSAGES} passages: divide it, or make them longer")
            page = page_at(document.pages, span.start)
            found.append(Passage(text[span.start : span.end], span.start, span.end, page))
        if not found:
            raise invalid_file("the file has no text")
        return tuple(found)


def _reader(model: EncoderModel, settings: Settings) -> ReadClaim | None:
    if not isinstance(model, EmbedModel) or model.tokenizer is None:
        return None
    files = FileReader(model.tokenizer, model.embedder, settings)

    def read(claim: Claim, context: WorkContext) -> EncodeJob:
        if SEARCH in claim.payload:
            return searched_job(model, claim, context.db)
        return files.read(claim, context.db, context.admission.outside)

    return read


PART = ServedPart(lambda claim: is_ingest(claim.payload) or SEARCH in claim.payload, _reader)
