"""Customers: submissions with idempotency keys and retries, streams, long polls, cancels, deadlines, webhooks.

Every answer goes into the client log, as the customer received it; the checker uses only that. Uses only the public
HTTP API. The requests are a pure function of the seed (``orders``).
"""

import asyncio
import json
import random
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import httpx2

from tests.chaos.cluster import MARKS, Tenant
from tests.chaos.flows import SHAPES, flow_request
from tests.chaos.journal import Journal
from tests.chaos.tools import MAX_TOKENS, SHAPE, STEPS, tool_request

Json = dict[str, Any]
TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
TOPICS = ("rivers", "mills", "bread", "lamps", "bees", "boats", "wool", "letters", "bridges", "rain")
CLASSES = ("interactive", "standard", "standard", "batch")
# Enough attempts that repeated faults do not use up those of a normal job.
MAX_ATTEMPTS = 30
# One order of so many is a flow. Its steps have few tokens, so that it takes no longer than another order.
FLOW_EVERY = 5
FLOW_TOKENS = 40
NUM_STEPS = {**{name: len(steps) for name, steps in SHAPES.items()}, SHAPE: len(STEPS)}
"""The shapes of jobs of several steps, and how many steps each has."""


@dataclass(frozen=True)
class Order:
    """One job of a customer, and how the customer reads it."""

    n: int
    tenant: int
    prompt: str
    max_tokens: int
    follow: str  # stream, poll or forget
    service_class: str = "standard"
    mark: str | None = None
    deadline_ms: int | None = None
    cancel_after_s: float | None = None
    hook: str | None = None
    cut_every: int | None = None
    max_attempts: int = MAX_ATTEMPTS
    is_endless: bool = False  # generates max_tokens
    shape: str | None = None  # of a job of several steps (``NUM_STEPS``)

    def body(self, hook_base: str) -> Json:
        """The request."""
        body: Json = {
            "model": "fake",
            "input": {"prompt": self.prompt},
            "sampling": {"max_tokens": self.max_tokens, "temperature": 0, "ignore_eos": self.is_endless},
            "service_class": self.service_class,
            "max_attempts": self.max_attempts,
        }
        if self.deadline_ms is not None:
            body["deadline_ms"] = self.deadline_ms
        if self.hook is not None:
            body["webhook"] = {"url": f"{hook_base}/{self.tenant}/{self.hook}"}
        if self.shape == SHAPE:
            return tool_request(body)
        return body if self.shape is None else flow_request(self.shape, body)


def orders(seed: int, num_tenants: int = 3) -> Iterator[Order]:
    """Yield orders of all kinds, without end."""
    rng = random.Random(seed)
    n = 0
    while True:
        yield order(rng, n, seed, num_tenants)
        n += 1


def order(rng: random.Random, n: int, seed: int, num_tenants: int) -> Order:
    """Draw one."""
    topic = rng.choice(TOPICS)
    hurried, cancelled = rng.random() < 0.06, rng.random() < 0.06
    return Order(
        n=n,
        tenant=rng.randrange(num_tenants),
        prompt=f"run {seed}, order {n}: tell me of {topic}." + " Go on." * rng.randrange(6),
        max_tokens=rng.choice((8, 24, 60, 120, 160)),
        follow=rng.choices(("stream", "poll", "forget"), (4, 3, 3))[0],
        service_class=rng.choice(CLASSES),
        deadline_ms=rng.randrange(300, 4000) if hurried else None,
        cancel_after_s=round(rng.uniform(0.0, 2.0), 2) if cancelled and not hurried else None,
        hook=rng.choices((None, "ok", "flaky"), (5, 4, 1))[0],
        cut_every=rng.choice((None, None, 3, 11)),
    )


def with_flows(wanted: Iterable[Order]) -> Iterator[Order]:
    """Make every fifth order a flow."""
    shapes = [*NUM_STEPS]
    for one in wanted:
        if one.n % FLOW_EVERY:
            yield one
            continue
        shape = shapes[one.n // FLOW_EVERY % len(shapes)]
        most = MAX_TOKENS if shape == SHAPE else min(one.max_tokens, FLOW_TOKENS)
        yield replace(one, shape=shape, max_tokens=most)


def marked(mark: str, n: int, seed: int, tenant: int = 0) -> Order:
    """A job that breaks its engine step."""
    prompt = f"run {seed}, order {n}: {MARKS[mark]} tell me of {TOPICS[n % len(TOPICS)]}."
    return Order(n=n, tenant=tenant, prompt=prompt, max_tokens=40, follow="poll", mark=mark, hook="ok", max_attempts=4)


class Load:
    """The customers of one run, on one event loop."""

    def __init__(
        self,
        journal: Journal,
        *,
        seed: int,
        tenants: Sequence[Tenant],
        api_urls: Sequence[str],
        hook_base: str,
        patience_s: float = 120.0,
        retries_full: bool = True,
    ) -> None:
        self.journal = journal
        self.num_submitted = self.num_accepted = self.num_refused = self.num_open = 0
        self.rate = 1.0
        self._seed = seed
        self._tenants = tenants
        self._urls = list(api_urls)
        self._hook_base = hook_base
        self._patience_s = patience_s
        self._retries_full = retries_full
        self._is_ending = False
        limits = httpx2.Limits(max_connections=2000, max_keepalive_connections=200, keepalive_expiry=5)
        self._http = httpx2.AsyncClient(timeout=httpx2.Timeout(15, pool=60), limits=limits, trust_env=False)
        self._tasks: set[asyncio.Task[None]] = set()

    def lead_to(self, api_urls: Sequence[str]) -> None:
        """Send every later request to these APIs, as a load balancer does when its targets change."""
        self._urls = list(api_urls)

    async def run(self, wanted: Iterator[Order], stop: asyncio.Event, max_open: int = 800) -> None:
        """Submit at ``rate`` a second until ``stop`` is set. A flow counts as its steps."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        num_rows = 1
        while not stop.is_set():
            due = max(due, loop.time() - 1.0) + num_rows / self.rate
            await asyncio.sleep(max(0.0, due - loop.time()))
            if len(self._tasks) < max_open:
                order = next(wanted)
                num_rows = 1 if order.shape is None else NUM_STEPS[order.shape]
                self.place(order)

    def place(self, wanted: Order) -> asyncio.Task[None]:
        """Begin one order."""
        task = asyncio.get_running_loop().create_task(self._live(wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settle(self, timeout_s: float) -> None:
        """Wait until every customer is done, or give up."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        self._is_ending = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()

    async def _live(self, wanted: Order) -> None:
        self.journal.write("order", **asdict(wanted))
        self.num_submitted += 1
        self.num_open += 1
        try:
            job_id = await self._submit(wanted)
            if job_id is not None:
                await asyncio.gather(self._follow(wanted, job_id), self._maybe_cancel(wanted, job_id))
        except Exception as error:  # noqa: BLE001 - a crashed customer must not count as a satisfied one
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.journal.write(
                "client_error", n=wanted.n, error=repr(error)[:300], where=f"{where.name}:{where.lineno}"
            )
        finally:
            self.num_open -= 1

    async def _submit(self, wanted: Order) -> str | None:
        loop = asyncio.get_running_loop()
        began, tries = loop.time(), 0
        headers = {"Idempotency-Key": f"{self._seed}-{wanted.n}", **self._auth(wanted)}
        while loop.time() - began < self._patience_s:
            tries += 1
            sent_at = loop.time()
            response = await self._ask(
                "POST", wanted, tries, "/v1/jobs", json=wanted.body(self._hook_base), headers=headers
            )
            if response is not None and response.status_code in (200, 202):
                job = response.json()
                took_ms = round((loop.time() - sent_at) * 1000, 1)
                self.num_accepted += 1
                self.journal.write("accepted", n=wanted.n, job=job["id"], ms=took_ms, tries=tries)
                return str(job["id"])
            if response is not None and not self._may_retry(response.status_code):
                self.num_refused += 1
                code = _code(response)
                self.journal.write("refused", n=wanted.n, status=response.status_code, code=code, tries=tries)
                return None
            await asyncio.sleep(min(2.0, 0.1 * 2 ** min(tries, 5)))
        self.journal.write("gave_up", n=wanted.n, tries=tries)
        return None

    def _may_retry(self, status: int) -> bool:
        return status >= 500 or status == 409 or (status == 429 and self._retries_full)

    async def _ask(self, method: str, wanted: Order, turn: int, path: str, **more: Any) -> httpx2.Response | None:
        """Send a request to the APIs in turn; None without a complete answer."""
        url = self._urls[(wanted.n + turn) % len(self._urls)]
        try:
            response = await self._http.request(method, url + path, **more)
        except httpx2.TransportError:
            return None
        self._note_server_error(wanted, response)
        return response

    def _note_server_error(self, wanted: Order, response: httpx2.Response) -> None:
        """Record an answer of 5xx: the customer asks again, so nothing else of the history would show it."""
        if response.status_code >= 500:
            url = response.request.url
            self.journal.write(
                "server_error", n=wanted.n, status=response.status_code, port=url.port, path=url.path.split("/")[-1]
            )

    def _auth(self, wanted: Order) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._tenants[wanted.tenant].key}"}

    async def _maybe_cancel(self, wanted: Order, job_id: str) -> None:
        if wanted.cancel_after_s is None:
            return
        await asyncio.sleep(wanted.cancel_after_s)
        for turn in range(60):
            path = f"/v1/jobs/{job_id}/cancel"
            response = await self._ask("POST", wanted, turn, path, headers=self._auth(wanted))
            if response is not None and response.status_code in (200, 409):
                status = response.json().get("status")
                self.journal.write("cancel", n=wanted.n, job=job_id, answer=response.status_code, status=status)
                return
            await asyncio.sleep(0.5)

    async def _follow(self, wanted: Order, job_id: str) -> None:
        if wanted.follow == "poll":
            await self._poll(wanted, job_id)
        elif wanted.follow == "stream":
            await self._stream(wanted, job_id)

    async def _poll(self, wanted: Order, job_id: str) -> None:
        turn = 0
        while not self._is_ending:
            turn += 1
            path = f"/v1/jobs/{job_id}?wait=8"
            response = await self._ask("GET", wanted, turn, path, headers=self._auth(wanted))
            if response is not None and response.status_code == 200:
                job = response.json()
                if job["status"] in TERMINAL:
                    self._saw(wanted, job, "poll")
                    return
            elif response is not None and response.status_code == 404:
                self.journal.write("missing", n=wanted.n, job=job_id)
                return
            else:
                await asyncio.sleep(0.5)

    def _saw(self, wanted: Order, job: Json, how: str) -> None:
        output, error = job.get("output") or {}, job.get("error") or {}
        self.journal.write(
            "seen",
            n=wanted.n,
            job=job["id"],
            how=how,
            status=job["status"],
            text=output.get("text"),
            code=error.get("code"),
        )

    async def _stream(self, wanted: Order, job_id: str) -> None:
        events: list[list[Any]] = []
        num_cuts = turn = 0
        try:
            while not self._is_ending:
                turn += 1
                job = await self._read_stream(wanted, job_id, events, turn)
                if job is not None:
                    self._saw(wanted, job, "stream")
                    return
                num_cuts += 1
                await asyncio.sleep(0.2)
        finally:
            self.journal.write("stream", n=wanted.n, job=job_id, cuts=num_cuts, events=events)

    async def _read_stream(self, wanted: Order, job_id: str, events: list[list[Any]], turn: int) -> Json | None:
        """Add the events of one connection; return the job after its terminal event."""
        headers = self._auth(wanted)
        if events:
            headers["Last-Event-ID"] = events[-1][0]
        url = f"{self._urls[(wanted.n + turn) % len(self._urls)]}/v1/jobs/{job_id}/events"
        most = wanted.cut_every if wanted.cut_every and turn < 200 else None
        try:
            async with self._http.stream("GET", url, headers=headers, timeout=20) as response:
                self._note_server_error(wanted, response)
                if response.status_code != 200:
                    return None
                return await _take_events(response, events, most)
        except httpx2.TransportError:
            return None


async def _take_events(response: httpx2.Response, events: list[list[Any]], most: int | None) -> Json | None:
    event_id = name = ""
    num_taken = 0
    async for line in response.aiter_lines():
        key, _, value = line.partition(": ")
        if key == "id":
            event_id = value
        elif key == "event":
            name = value
        elif key == "data":
            data = json.loads(value)
            text = data.get("name", "") if name.startswith("step.") else data.get("text", "")
            events.append([event_id, name, text, data.get("kept", 0)])
            if name.removeprefix("job.") in TERMINAL:
                return data
            num_taken += 1
            if most is not None and num_taken >= most:
                return None
    return None


def _code(response: httpx2.Response) -> str | None:
    try:
        return str(response.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return None


class LoadThread:
    """Customers on their own thread, beside the fault injection."""

    def __init__(self, load: Load, wanted: Iterator[Order], rate: float) -> None:
        self.load = load
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        load.rate = rate
        self._thread = threading.Thread(target=self._run, args=(wanted,), name="load", daemon=True)
        self._settle_s = 60.0
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True until the last customer has left."""
        return self._thread.is_alive()

    def inject(self, wanted: Order) -> None:
        """Add an order immediately."""
        self._loop.call_soon_threadsafe(self.load.place, wanted)

    def set_rate(self, rate: float) -> None:
        """Change the rate of orders per second."""
        self.load.rate = rate

    def end(self, settle_s: float) -> None:
        """Stop new orders; the others have ``settle_s`` to end. Returns at once."""
        self._settle_s = settle_s
        self._loop.call_soon_threadsafe(self._stop.set)

    def _run(self, wanted: Iterator[Order]) -> None:
        self._loop.run_until_complete(self._all(wanted))
        self._loop.close()

    async def _all(self, wanted: Iterator[Order]) -> None:
        await self.load.run(wanted, self._stop)
        await self.load.settle(self._settle_s)
