"""A reader's events are in order and without a hole, whatever the hub hands it and however often Postgres is away."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.producer_api.runtime import Runtime
from headrace.producer_api.streaming import job_events
from headrace.producer_api.streaming.job_events import Ended, Event, Queued, Restarted, Started, TextPiece, follow
from headrace.store.errors import Unavailable
from headrace.store.jobs import jobs
from headrace.store.jobs.jobs import Job, StoredStream
from headrace.store.schema.job_states import JobState
from headrace.store.streams.checkpoints import Checkpoint
from headrace.store.streams.stream_log import Frame, StreamCursor

JOB_ID = "job_1"
AWAY = "away"


@dataclass(frozen=True)
class Story:
    """What became of a job: the text of each attempt as of its end, and everything that was ever published."""

    ends: tuple[Checkpoint, ...]
    frames: tuple[Frame, ...]

    def row(self, epoch: int) -> Job:
        """The job's row while this attempt runs."""
        running = {"state": JobState.RUNNING, "epoch": epoch, "attempt": epoch, "num_deltas": 0, "output": None}
        return cast(Job, JobRow(**running))

    @property
    def last_row(self) -> Job:
        last = self.ends[-1]
        return cast(
            Job,
            JobRow(
                state=JobState.SUCCEEDED,
                epoch=len(self.ends),
                attempt=len(self.ends),
                num_deltas=last.num_deltas,
                output={"text": "".join(last.deltas)},
            ),
        )


@dataclass(frozen=True)
class JobRow:
    """As much of a job as a reader looks at."""

    state: JobState
    epoch: int
    attempt: int
    num_deltas: int
    output: dict[str, str] | None
    id: str = JOB_ID
    streamed_as: str = JOB_ID
    tenant_id: str = "tnt_1"
    payload: dict[str, object] = field(default_factory=dict)
    task: str = "generate"
    answer_id: str | None = None


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Attempts that continue from a part of the previous text, or start again."""
    ends: list[Checkpoint] = []
    frames: list[Frame] = []
    for epoch in range(1, draw(st.integers(1, 3)) + 1):
        known = ends[-1] if ends else Checkpoint()
        num_known = draw(st.integers(0, known.num_deltas))
        kept = Checkpoint(known.deltas[:num_known], ((1,),) * num_known, known.lineage)
        start = kept.continued_by(epoch)
        if start.num_deltas:
            frames.append(Frame(JOB_ID, epoch, 0, None, checkpoint=start))
        texts = [f"{epoch}.{n} " for n in range(start.num_deltas + 1, start.num_deltas + 1 + draw(st.integers(0, 4)))]
        frames += [Frame(JOB_ID, epoch, start.num_deltas + n, text) for n, text in enumerate(texts, 1)]
        ends.append(Checkpoint((*start.deltas, *texts), ((1,),) * (start.num_deltas + len(texts)), start.lineage))
    frames.append(Frame(JOB_ID, len(ends), ends[-1].num_deltas + 1, None))
    return Story(tuple(ends), tuple(frames))


class Hub:
    """Hands over whatever the test wants, in order or not, and then nothing."""

    def __init__(self, frames: Sequence[Frame | None]) -> None:
        self._frames = iter(frames)

    async def follow(self, _job_id: str, _after: StreamCursor) -> AsyncGenerator[Frame | None]:
        for frame in self._frames:
            yield frame
        while True:
            yield None


class Rows:
    """Postgres as it is at each look: away, or further than before; in the end it has the job's end."""

    def __init__(self, looks: Sequence[Job | str], last: Job) -> None:
        self._looks = iter(looks)
        self._last = last

    async def get(self, _tenant_id: str, _job_id: str) -> Job:
        now = next(self._looks, self._last)
        if isinstance(now, str):
            raise Unavailable(now)
        return now


def runtime_of(story: Story, frames: Sequence[Frame | None], looks: Sequence[Job | str]) -> Runtime:
    parts: dict[str, Any] = {
        "hub": Hub(frames),
        "reader": Rows(looks, story.last_row),
        "draining": asyncio.Event(),
        "db": None,
    }
    return cast(Runtime, SimpleNamespace(**parts))


async def read(runtime: Runtime, job: Job, after: StreamCursor | None = None) -> list[Event]:
    return [event async for event in follow(runtime, job, after) if event is not None]


def check_events(events: list[Event], after: StreamCursor, deltas: list[str]) -> list[str]:
    """Follow like a client, from a cursor and its deltas; return the client's final text."""
    at = after
    for event in events:
        match event:
            case Queued():
                assert event.cursor == at == StreamCursor()
            case Started():
                assert event.cursor > at
                assert (event.cursor.seq, deltas) == (0, [])
                # A row that could not be read for so long knows no attempt.
                assert event.attempt in (1, event.cursor.epoch)
            case Restarted():
                assert event.cursor > at
                deltas = deltas[: event.kept]
                assert (event.cursor.seq, event.text) == (event.kept, "".join(deltas))
            case TextPiece():
                assert event.cursor > at
                deltas = [*deltas, event.text]
                assert event.cursor.seq == len(deltas), "a hole or a repetition"
            case Ended():
                assert event.cursor > at
        at = event.cursor
    assert isinstance(events[-1], Ended)
    return deltas


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_events, "RELOAD_DELAY_S", 0)


@given(story=stories(), data=st.data())
def test_no_delta_but_the_next_whoever_is_away(story: Story, data: st.DataObject) -> None:
    published = st.sampled_from([*story.frames, None])
    frames = data.draw(st.one_of(st.lists(published, max_size=16), st.just(list(story.frames))), "frames")
    epochs = sorted(data.draw(st.lists(st.integers(1, len(story.ends)), max_size=6), "rows"))
    looks = data.draw(st.lists(st.none() | st.sampled_from([AWAY]), max_size=12), "looks")
    seen = iter(epochs)
    rows: list[Job | str] = [AWAY if look else story.row(next(seen, len(story.ends))) for look in looks]
    queued = replace(story.row(0), state=JobState.QUEUED)
    last = story.ends[-1]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jobs, "stored_deltas", lambda *_: stored(story))
        events = asyncio.run(read(runtime_of(story, frames, rows), queued))
    assert check_events(events, StreamCursor(), []) == list(last.deltas)


@given(story=stories(), data=st.data())
def test_nor_for_a_reader_who_comes_back(story: Story, data: st.DataObject) -> None:
    frames = data.draw(st.lists(st.sampled_from([*story.frames, None]), max_size=16), "frames")
    epoch = data.draw(st.integers(1, len(story.ends)), "epoch")
    had = list(story.ends[epoch - 1].deltas)
    had = had[: data.draw(st.integers(0, len(had)), "seq")]
    after = StreamCursor(epoch, len(had))
    rows: list[Job | str] = [AWAY] * data.draw(st.integers(0, 12), "looks")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jobs, "stored_deltas", lambda *_: stored(story))
        events = asyncio.run(read(runtime_of(story, frames, rows), story.row(epoch), after))
    assert check_events(events, after, had) == list(story.ends[-1].deltas)


def stored(story: Story) -> StoredStream | None:
    """What Postgres keeps of the stream."""
    last = story.ends[-1]
    return StoredStream(len(story.ends), list(last.deltas), last.lineage) if last.deltas else None
