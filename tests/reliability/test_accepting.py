"""P1 and P4: what an API has accepted is on disk, once for each key, however often and wherever the API is killed."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from tests.reliability.client import Client
from tests.reliability.conftest import Report
from tests.reliability.rig import Kept, Stack

SEED = 20261125
MODEL = "accepting"
# So few that a life has enough commits to reach its points, however many requests share one.
AT_ONCE = 4
POINTS = ("accept.before_commit", "accept.committed", "hint.before_publish")


def killed_again_and_again(seed: int) -> Callable[[int], str]:
    """Each life ends at a point around the commit, after a few passes; at the second, if it never passes the first."""

    def arm(life: int) -> str:
        rng = Random(f"{seed}/{life}")
        return f"{POINTS[life % 3]}=kill@{rng.randint(3, 7)}, accept.committed=kill@{rng.randint(8, 12)}"

    return arm


def kills(api: Kept) -> Counter[str]:
    return Counter(event["point"] for event in api.events("failpoint"))


def test_p1_accepted_jobs_are_on_disk(stack: Stack, is_full: bool, report: Report) -> None:
    num_jobs = 500 if is_full else 36
    stack.register(MODEL)
    stack.dispatcher()
    api, client = stack.api(arm=killed_again_and_again(SEED), ready_window=100_000)
    keys = [f"key {number}" for number in range(num_jobs)]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        accepted = list(threads.map(lambda key: client.submit(MODEL, key, 8, key=key), keys))
    rows = stack.query("SELECT jobs.id, held.key FROM jobs JOIN idempotency_keys AS held ON held.job_id = jobs.id")
    (stored,) = stack.query("SELECT count(*) AS jobs FROM jobs")
    killed = kills(api)
    report(
        "P1",
        seed=SEED,
        submitted=num_jobs,
        accepted=len(accepted),
        rows=stored.jobs,
        lost=len(set(accepted) - {row.id for row in rows}),
        kills=dict(killed),
        tries_without_an_answer=client.num_failed_tries,
    )
    assert dict(zip(keys, accepted, strict=True)) == {row.key: row.id for row in rows}
    assert stored.jobs == num_jobs
    assert killed.keys() >= set(POINTS if is_full else POINTS[:2])
    client.close()


@pytest.mark.full
def test_p4_a_key_is_one_job(stack: Stack, is_full: bool, report: Report) -> None:
    num_keys, num_posts = (50, 100) if is_full else (6, 10)
    stack.register(MODEL)
    stack.dispatcher()
    api, client = stack.api(arm=killed_again_and_again(SEED + 1), ready_window=100_000)
    seen: dict[str, set[str]] = {}
    for number in range(num_keys):
        key = f"key {number}"
        with ThreadPoolExecutor(num_posts) as threads:
            ids = threads.map(lambda _, key=key: client.submit(MODEL, key, 8, key=key), range(num_posts))
            seen[key] = set(ids)
    others = [status_of_another_body(client, key) for key in seen]
    (stored,) = stack.query("SELECT count(*) AS jobs FROM jobs")
    killed = kills(api)
    report(
        "P4",
        seed=SEED + 1,
        keys=num_keys,
        posts=num_keys * num_posts,
        rows=stored.jobs,
        kills=dict(killed),
        tries_without_an_answer=client.num_failed_tries,
        other_body=dict(Counter(others)),
    )
    assert [len(ids) for ids in seen.values()] == [1] * num_keys, "everybody was told of the same job"
    assert stored.jobs == num_keys
    assert others == [422] * num_keys
    assert killed
    client.close()


def status_of_another_body(client: Client, key: str) -> int:
    body = {"model": MODEL, "input": {"prompt": "something else"}}
    return client.insist("POST", "/v1/jobs", json=body, headers={"Idempotency-Key": key}).status_code
