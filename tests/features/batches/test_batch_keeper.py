"""Turns of the batch keeper without services: the pieces that it runs, their bounds, and how faults are kept apart."""

import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.batches import batch_keeper
from headrace.features.batches.batch_keeper import IDLE_S, MAX_LONG_TASKS, TURN_S, BatchKeeper, next_step
from headrace.features.batches.batch_round_robin import WAITING_S, BatchRoundRobin
from headrace.features.batches.batch_steps import BatchProgress, LinesOverLimit, LiveBatch, ParsedLine
from headrace.features.batches.batches import Batch
from headrace.store.errors import InvalidRequest, StatementTimeout, Unavailable
from headrace.store.schema.batch_states import BatchStatus
from tests.features.batches.making import BATCH, PRINCIPAL, SETTINGS

LINES = [b'{"custom_id": "%d"}\n' % number for number in range(1, 6)]
RUNNING = replace(BATCH, status=BatchStatus.IN_PROGRESS, next_line=1, next_offset=0, num_completed=0, num_failed=0)
VALIDATING = replace(BATCH, status=BatchStatus.VALIDATING)


class World:
    """The store, the storage and the lines of a keeper. ``told``: the actions of the keeper in the last turn."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.told: list[Any] = []
        self.live: dict[str, BatchProgress] = {}
        self.faults: dict[str, Exception] = {}
        self.content, self.slack, self.now, self.num_pieces = b"".join(LINES), 99, 1000.0, 1
        self.at_once, self.not_storable, self.rows = 99, set[str](), iter(())
        self.a_line_s = 0.0
        here: Any = self
        none: Any = None
        limits: Any = SimpleNamespace(slack=lambda _tenant_id: self.slack)
        patch.setattr(batch_keeper, "batch_steps", self)
        patch.setattr(batch_keeper, "time", SimpleNamespace(monotonic=self.clock))
        patch.setattr(batch_keeper, "record_accept", lambda _tracing, job, _start_ns, **of: self.told.append(of))
        patch.setattr(batch_keeper, "validate", lambda *of: self.long("validate", of[-1]))
        patch.setattr(batch_keeper, "publish", lambda *of: self.long("publish", of[-1]))
        self.keeper = BatchKeeper(
            SETTINGS,
            none,
            here,
            submissions=none,
            pipelines=none,
            queue_limits=limits,
            on_cancelled=lambda running, ended: self.told.append(("cancelled", running, ended)),
        )
        patch.setattr(self.keeper, "_lines", self)
        patch.setattr(self.keeper, "_round_robin", BatchRoundRobin(clock=lambda: self.now))

    def clock(self) -> float:
        self.now += 0.05
        return self.now

    def add(self, id_: str, batch: Batch, *, num_unfinished: int = 0, tenant_id: str = "acme") -> None:
        self.live[id_] = BatchProgress(replace(batch, id=id_, tenant_id=tenant_id), num_unfinished, 9.0, is_early=False)

    def turn(self) -> tuple[float, list[Any]]:
        """Run a turn, of one round; return the pause after it and the actions of the keeper."""
        self.told.clear()
        self.now += 0.05
        return self.keeper._turn(), [*self.told]

    @contextmanager
    def open(self, _digest: str) -> Iterator[io.BytesIO]:
        yield io.BytesIO(self.content)

    def owner(self, _batch: Batch) -> Any:
        return PRINCIPAL

    def take(self, _batch: Batch, owner: Any, line: Any, remaining_s: float) -> ParsedLine:
        assert (owner, remaining_s) == (PRINCIPAL, 9.0)
        self.now += self.a_line_s
        return ParsedLine(line.number, str(line.number), None)

    def refuse(self, line: Any) -> ParsedLine:
        return ParsedLine(line.number, f"refused {line.number}", None, {})

    def note_accepted(self, accepted: object) -> None:
        self.told.append(accepted)

    def list_live(self, _db: object) -> list[LiveBatch]:
        return [LiveBatch(id_, found.batch.tenant_id) for id_, found in self.live.items()]

    def count_ended_lines(self, _db: object, tenant_id: str, id_: str) -> BatchProgress:
        assert tenant_id == self.live[id_].batch.tenant_id
        if fault := self.faults.get(id_):
            raise fault
        return self.live[id_]

    def add_lines(
        self, _db: object, _batch: Batch, taken: Any, *, next_line: int, next_offset: int
    ) -> list[str] | None:
        names = [one.custom_id for one in taken]
        if len(taken) > self.at_once:
            raise LinesOverLimit(self.at_once)
        if self.not_storable & {*names}:
            raise InvalidRequest("a value cannot be stored")
        self.told.append((names, next_line, next_offset))
        return names or None

    def finalize(self, _db: object, tenant_id: str, id_: str) -> None:
        self.told.append(("finalize", tenant_id, id_))

    def cancel_jobs(self, _db: object, _tenant_id: str, id_: str) -> Any:
        return next(self.rows)

    def long(self, kind: str, batch: Batch) -> Generator[None]:
        try:
            for number in range(self.num_pieces):
                self.told.append(f"{kind} {batch.id}: {number}")
                yield
                if fault := self.faults.pop("piece", None):
                    raise fault
        finally:
            self.told.append(f"{kind} {batch.id} has ended")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def traced(*ids: str) -> list[Any]:
    return [{"batch_id": id_, "link": None} for id_ in ids]


def test_a_turn_takes_the_next_lines_within_the_bounds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add("a", replace(RUNNING, next_line=2, next_offset=len(LINES[0])))
    size = len(LINES[0])
    assert world.turn() == (TURN_S, [(["2", "3", "4", "5"], 6, 5 * size), ["2", "3", "4", "5"], *traced(*"aaaa")])
    world.slack = 2
    assert world.turn() == (TURN_S, [(["2", "3"], 4, 3 * size), ["2", "3"], *traced(*"aa")])
    world.slack = 99
    monkeypatch.setattr(batch_keeper, "MAX_BYTES_PER_TURN", size + 1)
    assert world.turn()[1][0] == (["2", "3"], 4, 3 * size), "the line that reaches the bound is the last"
    for nothing in ({"slack": 0}, {"slack": -1}, {"slack": 99, "content": LINES[0]}):
        vars(world).update(nothing)
        assert world.turn() == (WAITING_S, [])
    world.add("a", replace(RUNNING, input_digest=None))
    assert world.turn() == (WAITING_S, [])
    del world.live["a"]
    assert world.turn() == (IDLE_S, [])
    few = world.keeper._settings.model_copy(update={"batch_lines_under_way": 8})
    monkeypatch.setattr(world.keeper, "_settings", few)
    world.content = b"".join(LINES)
    world.add("a", replace(RUNNING, num_total=99), num_unfinished=6)
    assert world.turn()[1][0][0] == ["1", "2"], "eight of the tenant are under way"


def test_lines_that_take_long_to_read_do_not_hold_up_another_tenant(world: World) -> None:
    world.add("a", RUNNING)
    world.add("b", RUNNING, tenant_id="globex")
    world.a_line_s = 2.0  # each has a new grammar
    told = world.turn()[1]
    assert [names for names, *_ in told if isinstance(names, list)] == [["1"], ["1"]]


def test_lines_that_are_not_stored_wait_or_fail_alone(world: World) -> None:
    world.add("a", RUNNING)
    size = len(LINES[0])
    world.at_once = 2
    assert world.turn()[1] == [(["1", "2"], 3, 2 * size), ["1", "2"], *traced(*"aa")]
    world.at_once = 0
    assert world.turn() == (WAITING_S, []), "there is room for none"
    world.at_once, world.not_storable = 99, {"3"}
    assert world.turn()[1][0] == (["1", "2"], 3, 2 * size)
    world.not_storable = {"1"}
    assert world.turn()[1] == [(["refused 1"], 2, size), ["refused 1"], *traced("a")]
    world.not_storable = {"1", "refused 1"}
    assert world.turn() == (WAITING_S, []), "the batch has failed for now"


def test_a_batch_ends_when_its_lines_have_ended_or_are_cancelled(world: World) -> None:
    world.add("a", replace(RUNNING, num_completed=3, num_failed=4), tenant_id="globex")
    assert world.turn() == (TURN_S, [("finalize", "globex", "a")])
    world.add("a", replace(RUNNING, num_completed=3, num_failed=2), num_unfinished=2)
    assert (next_step(world.live["a"]).name, world.turn()) == ("WAIT", (WAITING_S, []))
    world.add("a", replace(BATCH, status=BatchStatus.CANCELLING), num_unfinished=1)
    world.rows = iter([(["job_1"], []), ([], ["job_2"]), ([], [])])
    assert world.turn() == (TURN_S, [("cancelled", ["job_1"], [])])
    assert world.turn() == (TURN_S, [("cancelled", [], ["job_2"])])
    assert world.turn()[0] == WAITING_S, "the jobs that run are their workers' to end"


def test_a_long_step_is_run_in_pieces_and_ends_with_its_batch(world: World) -> None:
    world.num_pieces = 2
    world.add("a", VALIDATING)
    assert [world.turn()[1] for _ in range(3)] == [["validate a: 0"], ["validate a: 1"], ["validate a has ended"]]
    assert world.turn()[1] == ["validate a: 0"]
    world.add("a", BATCH)
    assert world.turn()[1] == ["validate a has ended", "publish a: 0"], "one step of a batch at a time"
    world.faults["piece"] = Unavailable("the storage is away")
    assert world.turn() == (WAITING_S, ["publish a has ended"])
    world.now += 1.0
    assert world.turn()[1] == ["publish a: 0"], "it begins again"
    del world.live["a"]
    assert world.turn() == (IDLE_S, ["publish a has ended"])


def test_long_steps_are_bounded_for_each_tenant(world: World) -> None:
    for number in range(MAX_LONG_TASKS + 1):
        world.add(f"a{number}", VALIDATING)
    begun = [one for _ in range(MAX_LONG_TASKS) for one in world.turn()[1]]
    assert begun == [f"validate a{number}: 0" for number in range(MAX_LONG_TASKS)]
    assert world.turn() == (WAITING_S, [])
    world.add("b", VALIDATING, tenant_id="globex")
    assert "validate b: 0" in world.turn()[1]


@pytest.mark.parametrize(
    "fault",
    [
        StatementTimeout("too long"),
        Unavailable("the storage is away", code="storage_unavailable"),
        InvalidRequest("a value cannot be stored"),
        ValueError("a defect"),
    ],
)
def test_a_fault_of_a_batch_delays_it_alone(world: World, fault: Exception) -> None:
    world.add("bad", RUNNING)
    world.add("good", RUNNING, tenant_id="globex")
    world.faults["bad"] = fault
    pause_s, told = world.turn()
    assert (pause_s, told[0][0]) == (TURN_S, ["1", "2", "3", "4", "5"])
    del world.faults["bad"], world.live["good"]
    assert world.turn() == (WAITING_S, []), "it is tried again after a second"
    world.now += 1.0
    assert world.turn()[1][0][0] == ["1", "2", "3", "4", "5"]


def test_without_the_database_no_batch_is_tried(world: World) -> None:
    world.add("a", RUNNING)
    world.faults["a"] = Unavailable("Postgres is away", code="database_unavailable")
    with pytest.raises(Unavailable):
        world.turn()
