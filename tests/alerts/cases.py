"""One real fault for each alert. A case is a generator: it breaks something, yields until the alert fires, repairs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import redis

from headrace.store.schema.job_states import UNSERVED_QUEUE
from tests.alerts.stage import Stage, during

QUEUE = "fake@1"


@dataclass(frozen=True)
class Case:
    """A fault in words, and how it is made."""

    fault: str
    run: Callable[[Stage], Iterator[None]]


def _bent(server: str, mode: str, side: str) -> Callable[[Stage], Iterator[None]]:
    """Return a case that bends the connections between one kind of process and a server."""

    def run(stage: Stage) -> Iterator[None]:
        for member in stage.cluster.of_kind(side):
            member.proxies[server].delay_s = 0.7
        while not stage.has_fired:
            yield from stage.strike(f"{server}_{mode}", side, 4.0)

    return run


def _down(*kinds: str) -> Callable[[Stage], Iterator[None]]:
    return lambda stage: stage.down(*kinds)


def _marked(mark: str, every_s: float) -> Callable[[Stage], Iterator[None]]:
    return lambda stage: stage.again(lambda: stage.break_engine(mark), every_s)


def _no_worker(**body: object) -> Callable[[Stage], Iterator[None]]:
    """Return a case without workers, in which jobs with ``body`` wait."""

    def run(stage: Stage) -> Iterator[None]:
        stage.caller.body = dict(body)
        yield from stage.down("worker")
        stage.caller.body = {}

    return run


def _dispatcher_hangs(stage: Stage) -> Iterator[None]:
    yield from stage.strike("postgres_stall", for_s=40.0)


def _worker_restarts(stage: Stage) -> Iterator[None]:
    while not stage.has_fired:
        yield from stage.restarted("worker")


def _junk(stage: Stage) -> Iterator[None]:
    def push() -> None:
        with redis.Redis.from_url(stage.cluster.redis_url) as client:
            client.lpush(QUEUE, b"not a message")

    yield from stage.again(push, 1.0)


def _refused(stage: Stage) -> Iterator[None]:
    yield from stage.restarted("api", requests_per_minute="20")
    yield from stage.until_fired()
    yield from stage.restarted("api")


def _paused(stage: Stage) -> Iterator[None]:
    stage.post(f"/v1/queues/{QUEUE}/pause")
    yield from stage.until_fired()
    stage.post(f"/v1/queues/{QUEUE}/resume")


def _killed(stage: Stage) -> Iterator[None]:
    while not stage.has_fired:
        yield from stage.strike("kill_worker", for_s=6.0)


def _paused_worker(stage: Stage) -> Iterator[None]:
    while not stage.has_fired:
        yield from stage.strike("pause_worker", for_s=6.0)


def _late_write(stage: Stage) -> Iterator[None]:
    # One refused write can fall out of the window before two scrapes have seen it.
    while not stage.has_fired:
        yield from stage.strike("pause_at_finish")


def _postgres_long_away(stage: Stage) -> Iterator[None]:
    while not stage.has_fired:
        yield from stage.strike("postgres_cut", "worker", 25.0)


def _late_first_tokens(stage: Stage) -> Iterator[None]:
    for _ in range(3):
        if not stage.has_fired:
            yield from stage.strike("term_worker", for_s=0.1)
            yield from stage.restarted("worker", max_slots="1", fake_step_ms="60")
            yield from stage.until_fired()
    yield from stage.restarted("worker")


def _engine_hangs(stage: Stage) -> Iterator[None]:
    yield from stage.restarted("worker", max_step_s="120")
    stage.break_engine("hang")
    yield from stage.until_fired()
    yield from stage.restarted("worker")


def _preemptions(stage: Stage) -> Iterator[None]:
    """Let new workers see short answers alone, so that they take many jobs at once, and then long ones."""
    long = {"max_tokens": 400, "ignore_eos": True}
    while not stage.has_fired:
        yield from stage.restarted("worker", kv_pool_tokens="640")
        stage.caller.body = {"sampling": {**long, "stop": ["e"]}}
        yield from during(8.0)
        stage.post(f"/v1/queues/{QUEUE}/pause")
        stage.caller.body = {"sampling": long}
        yield from during(5.0)
        stage.caller.is_paused = True
        stage.post(f"/v1/queues/{QUEUE}/resume")
        while not stage.has_fired and stage.query("SELECT FROM jobs WHERE state IN ('queued', 'running') LIMIT 1"):
            yield
        stage.caller.is_paused = False
    stage.caller.body = {}
    yield from stage.restarted("worker")


def _hooked(path: str) -> Callable[[Stage], Iterator[None]]:
    """Return a case whose jobs name a webhook."""

    def run(stage: Stage) -> Iterator[None]:
        base = stage.receiver_url if path != "/nobody" else "http://127.0.0.1:9"
        stage.caller.body = {"webhook": {"url": base + path}}
        yield from stage.until_fired()
        stage.caller.body = {}

    return run


def _gone(stage: Stage) -> Iterator[None]:
    stage.post("/v1/webhook_endpoints", {"url": f"{stage.receiver_url}/gone"})
    yield from stage.until_fired()


def _rollout(step_ms: str, hold_s: int, min_jobs: int = 0) -> Callable[[Stage], Iterator[None]]:
    """Return a case with a rollout of one step to a new version, whose worker needs ``step_ms`` for a step."""

    def run(stage: Stage) -> Iterator[None]:
        version = stage.register("fake", next(_DTYPES))
        worker = stage.cluster.add("worker", f"worker-of-{version}", model=f"fake@{version}", fake_step_ms=step_ms)
        while not stage.cluster.is_ready(worker) and not stage.has_fired:
            yield
        step = {"percent": 50, "hold_s": hold_s, "min_jobs": min_jobs}
        stage.post("/v1/rollouts", {"model": "fake", "version": version, "steps": [step]})
        yield from stage.until_fired()
        for (rollout,) in stage.query("SELECT id FROM rollouts WHERE ended_at IS NULL"):
            stage.post(f"/v1/rollouts/{rollout}/abort")
        yield from stage.removed(worker)

    return run


# A version of the fake model differs from the others in its number format alone.
_DTYPES = iter(("bfloat16", "float16", "float64"))


def _too_few_workers(stage: Stage) -> Iterator[None]:
    yield from stage.restarted("dispatcher", autoscale=f"{QUEUE}=4..4")
    yield from stage.until_fired()
    yield from stage.restarted("dispatcher")


def _stuck_flow(stage: Stage) -> Iterator[None]:
    """Take the second step out of its queue once the first one has ended, as a defect would."""
    step = {"model": "fake", "input": {"prompt": "a river"}, "sampling": {"max_tokens": 300, "ignore_eos": True}}
    stage.post("/v1/jobs", {"input": {}, "steps": [step | {"name": "one"}, step | {"name": "two", "needs": ["one"]}]})
    while not stage.query("SELECT id FROM jobs WHERE task = 'flow' AND state = 'running'") and not stage.has_fired:
        yield
    stage.post(f"/v1/queues/{QUEUE}/pause")
    move = "UPDATE jobs SET queue = '{}' WHERE step = 'two' AND state = 'queued' AND queue = '{}' RETURNING id"
    while not stage.query(move.format(UNSERVED_QUEUE, QUEUE)) and not stage.has_fired:
        yield
    stage.post(f"/v1/queues/{QUEUE}/resume")
    yield from stage.until_fired()
    stage.query(move.format(QUEUE, UNSERVED_QUEUE))


def _no_folder(stage: Stage) -> Iterator[None]:
    stage.register_folder("fox", "/not/there")
    host = stage.cluster.add("host", "host", model="fox")
    yield from stage.until_fired()
    yield from stage.removed(host)


def _thrashing(stage: Stage) -> Iterator[None]:
    """Let a model host swap at once, and submit a job for each of five models every second."""
    models = ("ant", "bee", "cat", "dog", "elk")
    for model in models:
        stage.register(model)
    host = stage.cluster.add("host", "host", model=",".join(models), host_residence_s="0", host_swap_share="1")

    def submit() -> None:
        for model in models:
            stage.post("/v1/jobs", {"model": model, "input": {"prompt": "a river"}, "sampling": {"max_tokens": 9}})

    yield from stage.again(submit, 1.0)
    yield from stage.removed(host)
    waiting = f"SELECT id FROM jobs WHERE state = 'queued' AND queue NOT IN ('{QUEUE}', '{UNSERVED_QUEUE}')"
    for (job,) in stage.query(waiting):
        stage.post(f"/v1/jobs/{job}/cancel")


CASES: dict[str, Case] = {
    "HeadraceApiDown": Case("the API is killed", _down("api")),
    "HeadraceWorkerDown": Case("the workers are killed", _down("worker")),
    "HeadraceDispatcherDown": Case("the dispatcher is killed", _down("dispatcher")),
    "HeadraceNoLeader": Case(
        "the dispatcher's connections to Postgres are cut", _bent("postgres", "cut", "dispatcher")
    ),
    "HeadraceDispatcherHangs": Case("Postgres is stopped with SIGSTOP", _dispatcher_hangs),
    "HeadraceDutyFails": Case("the dispatcher's connections to Redis are cut", _bent("redis", "cut", "dispatcher")),
    "HeadraceWorkerRestarts": Case("workers are killed again and again", _worker_restarts),
    "HeadracePostgresAway": Case("the API's connections to Postgres are cut", _bent("postgres", "cut", "api")),
    "HeadraceRedisAway": Case("the API's connections to Redis are cut", _bent("redis", "cut", "api")),
    "HeadraceCommitsSlow": Case(
        "each packet between workers and Postgres is late", _bent("postgres", "slow", "worker")
    ),
    "HeadraceJunkInRedis": Case("something writes into the queue's list", _junk),
    "HeadraceFramesDropped": Case("the workers' connections to Redis are cut", _bent("redis", "cut", "worker")),
    "HeadraceRequestsFail": Case("the API's connections to Postgres are cut", _bent("postgres", "cut", "api")),
    "HeadraceSubmitsSlow": Case(
        "a table that submits write is locked for seconds", lambda stage: stage.locked("idempotency_keys", 1.8, 0.5)
    ),
    "HeadraceRefused": Case("a caller is over its rate limit", _refused),
    "HeadraceEventLoopLags": Case(
        "the API gets no processor for moments", lambda stage: stage.stutter("api", 0.4, 0.2)
    ),
    "HeadraceQueueWithoutWorker": Case("the workers are killed, jobs wait", _no_worker()),
    "HeadraceInteractiveWaits": Case("the workers are killed, interactive jobs wait", _no_worker()),
    "HeadraceDeadlineNear": Case("the workers are killed, jobs have 20 s", _no_worker(deadline_ms=20_000)),
    "HeadraceQueuePaused": Case("a queue is paused", _paused),
    "HeadraceWorkersMissing": Case("the autoscaler wants four workers, two are there", _too_few_workers),
    "HeadraceJobsExpire": Case("the workers are killed, jobs have a second", _no_worker(deadline_ms=1_000)),
    "HeadraceJobsFail": Case("the model's numbers are not finite for some jobs", _marked("nan", 0.3)),
    "HeadraceAttemptsRepeat": Case("the device has no memory for some jobs", _marked("oom", 0.5)),
    "HeadraceFlowsStuck": Case("a step of a job is in no queue", _stuck_flow),
    "HeadraceDeadLetters": Case("a job kills each worker that runs it", _marked("exit", 15.0)),
    "HeadraceLeasesExpire": Case("workers are killed", _killed),
    "HeadraceLeasesLost": Case("workers are stopped for longer than a lease", _paused_worker),
    "HeadraceStaleWrites": Case("a worker is stopped before it writes an outcome", _late_write),
    "HeadraceOutcomesLost": Case("the workers' connections to Postgres are cut for 25 s", _postgres_long_away),
    "HeadraceFirstTokenSlow": Case("the workers have one slot and a slow model", _late_first_tokens),
    "HeadraceStreamsStall": Case(
        "the workers get no processor for moments", lambda stage: stage.stutter("worker", 1.6, 0.4)
    ),
    "HeadraceEngineHangs": Case("a step of the model does not end", _engine_hangs),
    "HeadracePreemptions": Case("the KV pool is small, and answers are longer than before", _preemptions),
    "HeadraceRolloutRolledBack": Case("a rollout's candidate is four times slower", _rollout("80", 3600)),
    "HeadraceRolloutStuck": Case("a step asks for more jobs than come", _rollout("20", 0, min_jobs=1_000_000)),
    "HeadraceRolloutUndecided": Case("a candidate has few jobs yet", _rollout("20", 3600)),
    "HeadraceHostStartsFail": Case("the folder of a model is not on the machine of its host", _no_folder),
    "HeadraceHostThrashes": Case("five models share room for two, and may swap at once", _thrashing),
    "HeadraceWebhooksFail": Case("nothing listens at the webhooks' address", _hooked("/nobody")),
    "HeadraceWebhooksLate": Case("the receiver asks to wait for 33 s", _hooked("/late")),
    "HeadraceEndpointDisabled": Case("an endpoint answers 410", _gone),
}
