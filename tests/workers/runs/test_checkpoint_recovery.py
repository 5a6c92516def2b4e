"""Start position of an attempt for any state of the previous attempt and of Redis."""

import socket
import time
from dataclasses import replace
from typing import Any

import pytest

from headrace.store.errors import Unavailable
from headrace.store.jobs.claims import Release
from headrace.store.streams.checkpoints import Checkpoint
from headrace.store.streams.fencing import FencedLogs
from headrace.store.streams.stream_log import Frame
from headrace.workers.runs.checkpoint_recovery import SEAL_TIMEOUT_S, CheckpointRecovery
from headrace.workers.runs.claim_client import num_checkpoint_tokens, parts
from tests.workers.runs.test_outcome import CLAIM


class Logs:
    """A log of two deltas of epoch 2, or a Redis that is away."""

    def __init__(self, *, is_away: bool = False) -> None:
        self.is_away = is_away
        self.num_asked = 0

    def fence(self, job_id: str, epoch: int) -> list[Frame]:
        self.num_asked += 1
        if self.is_away:
            raise Unavailable("away")
        return [Frame(job_id, 2, 1, "a", (1,)), Frame(job_id, 2, 2, "b", (2,))]


IN_LOG = Checkpoint(("a", "b"), ((1,), (2,)), ((2, 0),))
OLDER = Checkpoint(("x",), ((9,),), ((1, 0),))
NEWER = Checkpoint(("x",), ((9,),), ((1, 0), (3, 1)))


@pytest.mark.parametrize(
    ("epoch", "stored", "is_away", "found", "num_asked"),
    [
        (1, None, False, Checkpoint(), 0),
        (3, None, False, IN_LOG, 1),
        (3, OLDER, False, IN_LOG, 1),
        (4, NEWER, False, NEWER, 0),
        (5, NEWER, False, NEWER, 1),
        (3, OLDER, True, OLDER, 1),
        (3, None, True, Checkpoint(), 1),
    ],
)
def test_an_attempt_begins_at_the_newest_that_is_known(
    epoch: int, stored: Checkpoint | None, is_away: bool, found: Checkpoint, num_asked: int
) -> None:
    logs: Any = Logs(is_away=is_away)
    resumer = CheckpointRecovery(logs)
    assert resumer.checkpoint(replace(CLAIM, epoch=epoch, checkpoint=stored), 9.0) == found
    assert logs.num_asked == num_asked


def test_a_redis_that_is_away_is_asked_once_in_a_while() -> None:
    now = [0.0]
    logs: Any = Logs(is_away=True)
    resumer = CheckpointRecovery(logs, clock=lambda: now[0])
    for _ in range(10):
        resumer.checkpoint(CLAIM, 9.0)
    assert logs.num_asked == 1
    now[0], logs.is_away = 1.5, False
    assert resumer.checkpoint(CLAIM, 9.0) == IN_LOG


def test_the_first_token_is_as_old_as_when_redis_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    now, logs = [100.0], Logs()

    def fence(*_: object) -> list[Frame]:
        now[0] += 0.5
        return [Frame("job_1", 2, 1, "a", (1,), age_s=2.0)]

    monkeypatch.setattr(logs, "fence", fence)
    recovery = CheckpointRecovery(logs, clock=lambda: now[0])
    assert recovery.checkpoint(CLAIM, 9.0).first_token_s == 9.0 + 0.5 - 2.0


def test_a_redis_that_does_not_answer_delays_a_job_by_little() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        resumer = CheckpointRecovery(FencedLogs(url, ttl_s=1, timeout_s=SEAL_TIMEOUT_S))
        began = time.monotonic()
        assert resumer.checkpoint(CLAIM, 9.0) == Checkpoint()
        assert time.monotonic() - began >= SEAL_TIMEOUT_S


def release(num_tokens: int) -> Release:
    checkpoint = Checkpoint(("x",), (tuple(range(num_tokens)),), ((1, 0),)) if num_tokens else None
    return Release("job", 1, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("sizes", "divided"),
    [
        ([], [[]]),
        ([0, 0, 0], [[0, 0, 0]]),
        ([4, 6, 1], [[4, 6], [1]]),
        ([30, 1], [[30], [1]]),
        ([5, 30, 5, 5], [[5], [30], [5, 5]]),
    ],
)
def test_what_is_handed_back_is_divided_by_its_tokens(sizes: list[int], divided: list[list[int]]) -> None:
    found = parts([release(size) for size in sizes], num_checkpoint_tokens, 10)
    assert [[len(one.checkpoint.tokens) if one.checkpoint else 0 for one in part] for part in found] == divided


def test_an_attempt_goes_on_from_so_many_deltas_not_tokens() -> None:
    first = Checkpoint(("a b", "c"), ((1, 2), (3,)), ((1, 0),))
    assert first.continued_by(3).lineage == ((1, 0), (3, 2))
    assert Checkpoint().continued_by(3).lineage == ((3, 0),)


@pytest.mark.parametrize(("restarts_after", "found"), [(1, IN_LOG), (2, Checkpoint())])
def test_what_another_version_has_emitted_is_not_continued(restarts_after: int, found: Checkpoint) -> None:
    logs: Any = Logs()
    recovery = CheckpointRecovery(logs)
    assert recovery.checkpoint(replace(CLAIM, epoch=3, restarts_after=restarts_after), 9.0) == found
    assert logs.num_asked == 1, "the log is closed for a worker that was only paused"
