"""Files that are added to a vector store, without services: their numbers, their jobs, and one that is refused."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.encoders.embed.inputs import Embedder
from headrace.features.retrieval import adding_files
from headrace.features.retrieval.adding_files import add_files, cancel_jobs, new_files
from headrace.features.retrieval.ingest_order import IngestOrder
from headrace.features.retrieval.store_bodies import ChunkingStrategy, FileOfBatch
from headrace.features.retrieval.store_files import NewStoreFile, StoreFile
from headrace.producer_api.http.requests import OriginHeaders
from headrace.producer_api.submission.draft_job import Origin, Receipt
from headrace.store.errors import Conflict, InvalidRequest, NotFound, RateLimited
from headrace.store.payloads.job_payload import ServiceClass
from headrace.store.registry.models import ModelVersion
from headrace.store.tenants.api_keys import Principal
from headrace.store.tracing.tracing import TraceContext
from tests.refusals import Naming

AT = datetime(2026, 11, 29, tzinfo=UTC)
VERSION = ModelVersion("vectors", 3, "embed", "fake-encoder", "fake", "f00d", "float32", 512, {}, AT, None)
PRINCIPAL = Principal("acme", "key_1", frozenset())
TRACE = TraceContext("1" * 32, "2" * 16, True)
HEADERS = OriginHeaders("POST /files", "key_1", "k", True, "project", None, TRACE)
STORE: Any = SimpleNamespace(id="vs_1", model="vectors", model_version=3)


class Adding:
    """The parts that files are added with. ``told``: the changes of files and jobs; ``refused``: by file."""

    def __init__(self, patch: pytest.MonkeyPatch, window: int = 1000) -> None:
        self.told: list[Any] = []
        self.orders: list[tuple[IngestOrder, Origin]] = []
        self.refused: dict[str, Exception] = {}
        self.attached: list[NewStoreFile] = []
        patch.setattr(adding_files, "store_files", self)
        patch.setattr(adding_files, "vector_stores", self)
        patch.setattr(adding_files, "cancel", self.cancel)
        tokenizer = SimpleNamespace(encode=lambda text, add_special: [0, 1])
        catalog = SimpleNamespace(task_settings=lambda _: Embedder(window + 2, 8), tokenizer=lambda _: tokenizer)
        submissions = SimpleNamespace(version_of=lambda principal, name: VERSION, submit=self.submit)
        self.runtime: Any = SimpleNamespace(db=None, catalog=catalog, submissions=submissions)

    def attach(self, _db: object, tenant_id: str, store_id: str, new: Any, *, as_batch: bool) -> Any:
        assert tenant_id == "acme"
        self.attached = [*new]
        made = [
            StoreFile(
                store_id=store_id,
                file_id=one.file_id,
                tenant_id=tenant_id,
                ticket=f"ticket {one.file_id}",
                job_id=None,
                status="in_progress",
                num_passages=0,
                num_bytes=0,
                attributes=one.attributes,
                chunk_tokens=one.chunk_tokens,
                overlap_tokens=one.overlap_tokens,
                created_at=AT,
                filename=f"{one.file_id}.md",
                file_bytes=90,
                error=None,
            )
            for one in new
        ]
        return made, "vsfb_1" if as_batch else None

    async def submit(self, principal: Principal, order: IngestOrder, origin: Origin) -> Receipt:
        assert principal is PRINCIPAL
        if fault := self.refused.get(order.source.file_id):
            raise fault
        self.orders.append((order, origin))
        return Receipt(f"job {order.source.file_id}", False, {})

    def cancel(self, _runtime: object, tenant_id: str, job_id: str) -> None:
        self.told.append(("cancel", tenant_id, job_id))
        if fault := self.refused.get(job_id):
            raise fault

    def detach(self, _db: object, *of: str, actor: str) -> None:
        self.told.append(("detach", *of, actor))
        if of[-1] == "gone":
            raise NotFound("no file")

    def note_jobs(self, _db: object, tenant_id: str, jobs: dict[str, str]) -> None:
        self.told.append(("jobs", tenant_id, jobs))

    def touch(self, _db: object, *of: str) -> None:
        self.told.append(("touch", *of))


def entry(file_id: str, size: int | None = None, overlap: int = 0, **attributes: Any) -> FileOfBatch:
    static = {"max_chunk_size_tokens": size, "chunk_overlap_tokens": overlap}
    chunking = None if size is None else ChunkingStrategy.model_validate({"type": "static", "static": static})
    return FileOfBatch(file_id=file_id, attributes=attributes or None, chunking_strategy=chunking)


@pytest.mark.parametrize(("window", "expected"), [(1000, (800, 200)), (801, (800, 200)), (402, (402, 100))])
def test_a_passage_has_800_tokens_or_the_window_and_a_quarter_overlaps(
    monkeypatch: pytest.MonkeyPatch, window: int, expected: tuple[int, int]
) -> None:
    world = Adding(monkeypatch, window)
    auto = FileOfBatch(file_id="a", attributes=None, chunking_strategy=ChunkingStrategy(type="auto"))
    own = entry("c", 120, 50, year=2026)
    assert new_files(world.runtime, VERSION, [auto, entry("b"), own]) == [
        NewStoreFile("a", {}, *expected),
        NewStoreFile("b", {}, *expected),
        NewStoreFile("c", {"year": 2026}, 120, 50),
    ]
    new_files(world.runtime, VERSION, [entry("a", window)])
    with pytest.raises(InvalidRequest) as refused:
        new_files(world.runtime, VERSION, [entry("a", window + 1)])
    assert (refused.value.message, refused.value.param) == (
        Naming(str(window + 1), f"{window} tokens"),
        "chunking_strategy.static.max_chunk_size_tokens",
    )


async def test_each_file_has_a_job_of_the_batch_class(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Adding(monkeypatch)
    attached, batch_id = await add_files(world.runtime, PRINCIPAL, STORE, [entry("a", 120, 50), entry("b")], HEADERS)
    assert ([one.file_id for one in attached], batch_id) == (["a", "b"], None)
    (order, origin), _ = world.orders
    assert (order.model, order.service_class) == ("vectors@3", ServiceClass.BATCH)
    assert order.source.model_dump() == {
        "vector_store_id": "vs_1",
        "file_id": "a",
        "filename": "a.md",
        "ticket": "ticket a",
        "num_bytes": 90,
        "chunk_tokens": 120,
        "overlap_tokens": 50,
    }
    # Neither the key nor a retry of the request belongs to one of its jobs.
    assert origin == Origin("POST /files", None, "", False, 0, "project", None, TRACE)
    jobs = {"ticket a": "job a", "ticket b": "job b"}
    assert world.told == [("jobs", "acme", jobs), ("touch", "acme", "vs_1")]
    _, batch_id = await add_files(world.runtime, PRINCIPAL, STORE, [entry("a")], HEADERS, as_batch=True)
    assert batch_id == "vsfb_1"


async def test_no_file_stays_if_a_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Adding(monkeypatch)
    full = RateLimited("the queue is full", retry_after_s=1.0)
    world.refused = {"b": full, "job a": Conflict("it has ended")}
    with pytest.raises(RateLimited) as refused:
        await add_files(world.runtime, PRINCIPAL, STORE, [entry(one) for one in ("gone", "a", "b", "c")], HEADERS)
    assert refused.value is full
    assert world.told == [
        *(("detach", "acme", "vs_1", one, "key_1") for one in ("gone", "a", "b", "c")),
        *(("cancel", "acme", f"job {one}") for one in ("gone", "a", "c")),
    ]


def test_jobs_that_have_ended_or_gone_do_not_keep_others_from_being_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Adding(monkeypatch)
    world.refused = {"1": Conflict("it has ended"), "2": NotFound("no job")}
    cancel_jobs(world.runtime, "acme", ["1", "2", "3"])
    assert [job_id for _, _, job_id in world.told] == ["1", "2", "3"]
