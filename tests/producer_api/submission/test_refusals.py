"""Decisions of a submission without services: limits of the queue, steps of a batch, keys, the cache, versions."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from policy.documents import PolicyDocument
from policy.policies import Policy
from producer_api.submission import queue_limits, unserved
from producer_api.submission.cache_lookup import CacheLookups, CacheWish, has_one_answer, read_wish
from producer_api.submission.default_templates import is_indifferent, with_default
from producer_api.submission.draft_job import DraftJob, Origin, Receipt, known, run_each, spend_each
from producer_api.submission.idempotency import RequestDigests
from producer_api.submission.prompt_preparation import PromptPreparation, check_called_urls, check_task
from producer_api.submission.queue_limits import KEEP_S, QueueLimits
from store.encryption.keyed_digests import Digests
from store.errors import Conflict, HeadraceError, InvalidRequest, NoWorker, RateLimited, Unavailable
from store.hosts.host_reports import HostOutlook
from store.jobs.acceptance import Idempotency
from store.jobs.jobs import Accepted
from store.jobs.response_cache import CacheLookup
from store.jobs.responses import NewResponse
from store.payloads.sampling_params import SamplingDefaults
from store.registry.default_template import DefaultTemplate
from store.registry.engine_spec import EngineKind
from store.registry.models import ModelVersion
from store.scheduling.backlog import Backlog, Load, TenantBacklog
from store.scheduling.service_rate import Rate
from store.schema.version_states import VersionState
from store.settings import Settings
from store.tasks.embed import EmbedRequest
from store.tasks.generate import GeneratePayload, GenerateRequest
from store.tenants.api_keys import Principal
from store.tenants.tenant_limits import Limits, RequestLimits
from tests.stand_ins import stand_in

AT = datetime(2026, 11, 29, tzinfo=UTC)
VERSION = ModelVersion("tiny", 1, "generate", "fake", "fake:tiny", "0" * 64, "float32", 512, {}, AT, None)
PRINCIPAL = Principal("acme", "key_1", frozenset())


def told(error: object) -> tuple[type, str, str, str | None]:
    assert isinstance(error, HeadraceError)
    return type(error), error.message, error.code, error.param


# The limits of the queue.


def share(tenant_id: str, jobs: int, tokens: int) -> TenantBacklog:
    return TenantBacklog("tiny@1", tenant_id, 1, Load(jobs, tokens), Load())


def job(id_: str = "job_1", tenant_id: str = "acme", tokens: int = 10, **fields: Any) -> Any:
    """The parts of a new job that the limits look at."""
    given = {"idempotency": None, "limits": None, "deadline_s": 60.0} | fields
    return SimpleNamespace(id=id_, tenant_id=tenant_id, queued_tokens=tokens, **given)


class Queue:
    """Limits of a queue whose snapshot and clock are the test's."""

    def __init__(self, patch: pytest.MonkeyPatch, *shares: TenantBacklog, rate: Rate | None = None, **most: int):
        self.now, self.num_reads = 1000.0, 0
        self.found = Backlog(shares, {} if rate is None else {"tiny@1": rate}, frozenset(), AT)
        self.wait_s: float | None = None

        def read(_: object) -> Backlog:
            self.num_reads += 1
            return self.found

        backlog = SimpleNamespace(read_backlog=read, too_long_a_wait_s=lambda *_: self.wait_s)
        patch.setattr(queue_limits, "backlog", backlog)
        patch.setattr(queue_limits, "is_known", lambda _, tenant_id, known: (tenant_id, known.key) == ("acme", "seen"))
        bounds = {
            "max_queued_jobs": 100,
            "max_queued_tokens": 1000,
            "max_queued_jobs_per_tenant": 10,
            "max_queued_tokens_per_tenant": 500,
        }
        settings = Settings(database_url="postgresql://x/y", redis_url="redis://x").model_copy(update=bounds | most)
        nothing: Any = None
        self.limits = QueueLimits(settings, nothing, clock=lambda: self.now)

    def accept(self, *jobs: Any, **named: Any) -> list[Any]:
        def store(new: Sequence[Any]) -> list[Accepted | Exception]:
            return [Accepted(one.id, replayed=False, announced=False) for one in new]

        return self.limits.accept(jobs, store, **named)


@pytest.mark.parametrize(
    ("shares", "tokens", "message"),
    [
        ([share("acme", 10, 0)], 1, "you have 10 jobs queued, and 10 are the most that one tenant may have"),
        ([share("acme", 9, 0), share("globex", 90, 0)], 1, None),
        ([share("acme", 9, 491)], 10, "you have 491 tokens queued, and 500 are the most that one tenant may have"),
        ([share("acme", 9, 490)], 10, None),
        ([share("globex", 100, 0)], 1, "the queue is full"),
        ([share("globex", 1, 991)], 10, "the queue is full"),
        ([share("globex", 1, 990)], 10, None),
    ],
)
def test_a_job_is_refused_over_the_limit_and_not_at_it(
    monkeypatch: pytest.MonkeyPatch, shares: list[TenantBacklog], tokens: int, message: str | None
) -> None:
    (outcome,) = Queue(monkeypatch, *shares).accept(job(tokens=tokens))
    if message is None:
        assert isinstance(outcome, Accepted)
    else:
        said = f"{message}: try again when some have ended"
        assert told(outcome) == (RateLimited, said, "queue_full", None)
        assert outcome.retry_after_s == 5.0, "no rate is known"


def test_jobs_of_one_call_count_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, max_queued_jobs_per_tenant=2)
    outcomes = queue.accept(job("a"), job("b"), job("c"), job("d", "globex"))
    assert [isinstance(one, Accepted) for one in outcomes] == [True, True, False, True]
    assert not isinstance(queue.accept(job("e"))[0], Accepted)


def failing(_jobs: object) -> Any:
    """Store nothing: divide by zero."""
    return 1 / 0


def test_what_failed_or_was_replayed_gives_its_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, max_queued_jobs_per_tenant=1)
    (away,) = queue.limits.accept([job()], lambda _: [Unavailable("away")])
    assert isinstance(away, Unavailable)
    (replayed,) = queue.limits.accept([job()], lambda _: [Accepted("job_0", replayed=True, announced=False)])
    assert replayed.job_id == "job_0"
    with pytest.raises(ZeroDivisionError):
        queue.limits.accept([job()], failing)
    assert isinstance(queue.accept(job())[0], Accepted)
    assert isinstance(queue.accept(job("other"))[0], RateLimited)


def test_a_repeated_key_needs_no_room_and_another_does(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, share("acme", 10, 0), share("globex", 10, 0))
    seen, new = (Idempotency("/v1/jobs", key, "body") for key in ("seen", "new"))
    outcomes = queue.accept(job("a", idempotency=seen), job("b", idempotency=new), job("c", "globex", idempotency=seen))
    assert [isinstance(one, Accepted) for one in outcomes] == [True, False, False]
    (full,) = queue.limits.accept([job("d")], failing)
    assert isinstance(full, RateLimited)
    assert full.code == "queue_full", "nothing is stored"


def test_more_tokens_than_may_ever_be_queued_are_a_bad_request(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch)
    message = "prompt and max_tokens are 501 tokens together, more than may be queued: ask for fewer"
    assert told(queue.accept(job(tokens=501))[0]) == (InvalidRequest, message, "invalid_value", "sampling.max_tokens")
    assert isinstance(queue.accept(job(tokens=500))[0], Accepted)
    own = RequestLimits(tenant=Limits(queued_tokens=2000), key=Limits(queued_tokens=1))
    assert isinstance(queue.accept(job("b", "globex", tokens=1001, limits=own))[0], InvalidRequest)
    found = queue.accept(job("c", "globex", tokens=500, limits=replace(own, tenant=Limits(queued_tokens=499))))
    assert isinstance(found[0], InvalidRequest)


def test_a_deadline_that_cannot_be_met_is_told_if_its_owner_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch)
    queue.wait_s = 90.4
    refused, other = queue.accept(job("a", deadline_s=1.5), job("b"), with_deadline={"a"})
    message = (
        "the job would start in about 90 s, after its deadline of 1.5 s: give it more time or a better service class"
    )
    assert told(refused) == (InvalidRequest, message, "deadline_unreachable", "deadline_ms")
    assert isinstance(other, Accepted)


def test_refused_callers_come_back_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs a second are served, of which one tenant has one queue of two tenants: one a second."""
    shares = share("acme", 12, 0), share("globex", 1, 0)
    queue = Queue(monkeypatch, *shares, rate=Rate(2.0, 200.0))
    waits = [queue.accept(job(str(number)))[0].retry_after_s for number in range(3)]
    assert waits == [3.0, 4.0, 5.0], "three are too many, and each caller takes a place"
    queue.now += 2.0
    assert queue.accept(job("later"))[0].retry_after_s == 4.0
    slow = Queue(monkeypatch, *shares, rate=Rate(0.002, 200.0))
    assert slow.accept(job())[0].retry_after_s == 120.0
    by_tokens = Queue(monkeypatch, share("acme", 1, 500), rate=Rate(2.0, 4.0))
    assert by_tokens.accept(job(tokens=10))[0].retry_after_s == 2.5
    stopped = Queue(monkeypatch, *shares, rate=Rate(0.0, 0.0))
    assert stopped.accept(job())[0].retry_after_s == 120.0


def test_half_of_each_limit_is_left_to_lines_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch, share("acme", 2, 0), share("globex", 40, 0))
    assert (queue.limits.slack("acme"), queue.limits.slack("initech")) == (3, 5)
    busy = Queue(monkeypatch, share("globex", 47, 499))
    assert busy.limits.slack("initech") == 3
    assert Queue(monkeypatch, share("globex", 47, 500)).limits.slack("initech") == 0
    assert Queue(monkeypatch, share("acme", 1, 250)).limits.slack("acme") == 0
    assert Queue(monkeypatch, share("acme", 9, 0)).limits.slack("acme") == 0, "never below nothing"


def test_a_snapshot_is_used_for_a_quarter_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch)
    for at in (0.0, KEEP_S - 0.01, KEEP_S, KEEP_S + 0.01):
        queue.now = 1000.0 + at
        queue.limits.backlog()
    assert queue.num_reads == 2


# A batch of drafts.


def draft(text: str = "hi", **origin: Any) -> DraftJob:
    request = GenerateRequest.model_validate({"model": "tiny", "input": {"prompt": text}})
    given = {"route": "POST /v1/jobs", "idempotency_key": None, "fingerprint": "", "is_retry": False, "num_bytes": 1}
    return DraftJob(PRINCIPAL, request, Origin(**given | origin))


def test_a_failure_is_the_draft_s_own_and_an_outage_is_for_all_that_go_on() -> None:
    ended, receipt = draft(), Receipt("job_0", True, {})
    ended.outcome = receipt
    first, second, third = draft("1"), draft("2"), draft("3")
    asked: list[str] = []

    def step(one: DraftJob) -> None:
        text: Any = one.request.input
        asked.append(text.prompt)
        if text.prompt == "1":
            raise InvalidRequest("wrong")
        if text.prompt == "2":
            raise Unavailable("away")

    run_each([ended, first, second, third], step)
    assert asked == ["1", "2"], "an outage ends the step"
    assert ended.outcome is receipt
    assert [type(one.outcome) for one in (first, second, third)] == [InvalidRequest, Unavailable, Unavailable]
    assert (type(draft().ended), third.ended) == (ValueError, third.outcome)
    with pytest.raises(ValueError, match="a step was left out"):
        known(None)
    assert known(0) == 0


def test_what_is_spent_is_told_to_each_draft() -> None:
    ended, first, second = draft(), draft("1"), draft("2")
    ended.outcome, first.headers = Receipt("job_0", True, {}), {"a": "1"}
    asked: list[int] = []

    def spend(going: Sequence[DraftJob]) -> list[Any]:
        asked.append(len(going))
        return [{"b": "2"}, RateLimited("over", retry_after_s=1)]

    spend_each([ended, first, second], spend)
    assert (asked, first.headers, first.outcome, ended.headers) == ([2], {"a": "1", "b": "2"}, None, {})
    assert (type(second.outcome), second.headers) == (RateLimited, {})


# Idempotency-Keys, and names of callers under a policy.

KEYED, PLAIN = RequestDigests(Digests([b"new", b"old"])), RequestDigests(Digests())
POLICY = Policy(
    PolicyDocument.model_validate(
        {
            "version": 1,
            "rules": [
                {"id": "ssn", "kinds": ["us_ssn"], "action": "redact"},
                {"id": "mail", "kinds": ["email"], "action": "block"},
            ],
        }
    )
)
SSN = "SSN 536-22-1234"


def body_of(digests: RequestDigests = PLAIN, response: NewResponse | None = None, **changes: Any) -> str:
    stored = changes.pop("is_stored", None)
    request = GenerateRequest.model_validate({"model": "tiny", "input": {"prompt": "hi"}} | changes)
    found = digests.idempotency("route", "key", request, response, is_stored=stored)
    assert found is not None
    return found.fingerprint


def test_a_key_goes_with_all_that_the_request_asks_for() -> None:
    response = NewResponse("resp_1", True, False, [{"id": "msg_1", "role": "user"}], {"a": 1})
    bodies = [
        body_of(),
        body_of(KEYED),
        body_of(priority=4),
        body_of(user="u"),
        body_of(is_stored=True),
        body_of(is_stored=False),
        *(
            body_of(response=one)
            for one in (
                response,
                replace(response, previous_id=None),
                replace(response, is_stored=False),
                replace(response, is_background=True),
                replace(response, request={}),
                replace(response, appends_to="conv_1"),
                replace(response, appends_to="conv_2"),
                replace(response, appends_to="conv_1", input=[{"id": "msg_1", "role": "system"}]),
            )
        ),
    ]
    assert len(set(bodies)) == len(bodies)
    assert body_of(response=response) == body_of(response=replace(response, input=[]))
    again = replace(response, appends_to="conv_1", input=[{"id": "msg_2", "role": "user"}])
    said = {"input": {"messages": [{"role": "user", "content": "what the conversation has"}]}}
    assert body_of(response=again, **said) == body_of(
        response=replace(response, appends_to="conv_1"), input={"messages": [{"role": "user", "content": "more"}]}
    ), "what the conversation has, and the ids of items, are not compared"


def test_a_key_has_1_to_255_characters_and_the_digests_of_every_key() -> None:
    request = draft().request
    found = KEYED.idempotency("route", "k" * 255, request, None)
    assert found is not None
    assert (found.route, found.key, len(found.also)) == ("route", "k" * 255, 1)
    newest = RequestDigests(Digests([b"new"])).idempotency("route", "k", request, None)
    assert newest is not None
    assert found.fingerprint == newest.fingerprint
    for key in ("", "k" * 256):
        with pytest.raises(InvalidRequest) as caught:
            KEYED.idempotency("route", key, request, None)
        message = "an Idempotency-Key has 1 to 255 characters"
        assert told(caught.value) == (InvalidRequest, message, "invalid_value", "Idempotency-Key")
    assert KEYED.idempotency("route", None, request, None) is None


def test_a_name_that_a_policy_changes_is_a_digest_or_what_is_left_of_it() -> None:
    assert (KEYED.name(POLICY, "ann", "user"), PLAIN.name(POLICY, SSN, "user")) == ("ann", "SSN <US_SSN_1>")
    assert KEYED.name(POLICY, SSN, "user") == f"user_{Digests([b'new']).of('name', SSN.encode())[0]}"
    with pytest.raises(InvalidRequest) as caught:
        KEYED.name(POLICY, "ann@example.com", "user")
    message = "the policy's rule mail does not let this input in"
    assert told(caught.value) == (InvalidRequest, message, "policy_blocked_input", "user")


def test_a_key_that_a_policy_changes_is_known_by_the_digest_of_any_key() -> None:
    new, old = (f"user_{Digests([key]).of('name', SSN.encode())[0]}" for key in (b"new", b"old"))
    assert KEYED.key(POLICY, "plain", lambda _: True) == "plain"
    assert KEYED.key(POLICY, SSN, lambda _: False) == new
    assert KEYED.key(POLICY, SSN, lambda key: key == old) == old
    with pytest.raises(InvalidRequest) as caught:
        PLAIN.key(POLICY, SSN, lambda _: True)
    assert told(caught.value) == (
        InvalidRequest,
        "the policy takes something out of this Idempotency-Key, and this server has no HEADRACE_DIGEST_KEYS: "
        "send a random one",
        "invalid_value",
        "Idempotency-Key",
    )


# The response cache.


def lookups(mode: Any) -> CacheLookups:
    settings = Settings(database_url="postgresql://x/y", redis_url="redis://x", response_cache=mode)
    return CacheLookups(settings.model_copy(update={"response_cache_ttl_s": 7.0}), Digests())


def payload(temperature: float = 0.0, seed: int | None = None, **source: Any) -> GeneratePayload:
    sampling = {"max_tokens": 4, "temperature": temperature, "seed": seed}
    return GeneratePayload.model_validate({"input": {"prompt": "hi"} | source, "sampling": sampling})


def test_the_cache_is_for_those_that_the_setting_names() -> None:
    wishes = (None, CacheWish.USE, CacheWish.BYPASS)
    concerned = {mode: [lookups(mode).is_concerned(wish) for wish in wishes] for mode in ("off", "asked", "on")}
    assert concerned == {"off": [False] * 3, "asked": [False, True, False], "on": [True] * 3}
    assert lookups("on").lookup(CacheWish.BYPASS, VERSION, None, payload(), {}, task="generate") is None
    assert lookups("asked").lookup(None, VERSION, None, payload(), {}, task="generate") is None
    assert (read_wish(None), read_wish(" Bypass ")) == (None, CacheWish.BYPASS)
    with pytest.raises(InvalidRequest) as caught:
        read_wish("x" * 50)
    message = f"Headrace-Cache is `use` or `bypass`, not {'x' * 40!r}"
    assert told(caught.value) == (InvalidRequest, message, "invalid_value", "Headrace-Cache")


def test_an_answer_is_known_by_all_that_decides_it() -> None:
    def found(
        version: ModelVersion = VERSION, policy: tuple[str, int] | None = None, task: str = "generate", **stored: Any
    ) -> CacheLookup:
        lookup = lookups("on").lookup(None, version, policy, payload(), stored, task=task)
        assert lookup is not None
        assert lookup.ttl_s == 7.0
        return lookup

    different = [
        found(),
        found(replace(VERSION, model="other")),
        found(replace(VERSION, version=2)),
        found(replace(VERSION, digest="1")),
        found(policy=("", 1)),
        found(policy=("", 2)),
        found(task="embed"),
        found(a=1),
        found(b=1),
    ]
    assert len({one.digest for one in different}) == len(different)
    values = [{"counts": {"EMAIL": 1}, "vault": {"a": number}} for number in range(2)]
    first, second = (lookups("on").lookup(None, VERSION, None, payload(), {"policy": one}, task="t") for one in values)
    assert first == second, "the model does not see the values of placeholders"


def test_only_a_request_with_one_answer_shares_it() -> None:
    other = replace(VERSION, engine=stand_in(kind=EngineKind.OPENAI))
    cases = [
        (payload(), VERSION),
        (payload(), other),
        (payload(1.0), VERSION),
        (payload(1.0, 0), VERSION),
        (payload(1.0, 0), other),
    ]
    assert [has_one_answer(*case) for case in cases] == [True, True, False, True, False]


# Versions: what they serve, whether somebody does, and their default templates.


def test_a_version_without_a_worker_is_told_with_what_hosts_do() -> None:
    loading = HostOutlook.model_validate({"queue": "tiny@1", "in_s": 0.2})
    never = HostOutlook.model_validate({"queue": "tiny@1", "text": "it is too large"})
    unread = replace(VERSION, state=VersionState.REGISTERED)
    assert unserved.warning(VERSION, None) == "no worker serves tiny@1; the job waits until one starts"
    assert unserved.warning(VERSION, loading) == "no worker serves tiny@1; a model host loads it in about 1 s"
    assert unserved.warning(VERSION, never) == (
        "no worker serves tiny@1; the job waits until one starts, and no model host starts one: it is too large"
    )
    assert unserved.warning(unread, None) == "no worker has verified tiny@1; the job waits until one has"
    rejected = replace(VERSION, state=VersionState.REJECTED, state_reason="its files are damaged")
    message = "tiny@1 has failed its verification, so no worker runs it: its files are damaged"
    assert told(unserved.rejected(rejected)) == (Conflict, message, "model_rejected", "model")
    assert unserved.refusal("tiny@1", loading) is None, "a host starts a worker"
    for outlook, why in ((None, ""), (never, " (it is too large)")):
        message = f"no worker serves tiny@1{why}: start one, or ask for another model"
        assert told(unserved.refusal("tiny@1", outlook)) == (NoWorker, message, "no_worker", "model")


TEMPLATE = DefaultTemplate.model_validate(
    {"id": "p", "name": "n", "version": 1, "digest": "d", "messages": [{"role": "system", "content": "Be brief."}]}
)


def chat(**source: Any) -> GenerateRequest:
    messages = [{"role": "user", "content": "hi"}]
    return GenerateRequest.model_validate({"model": "tiny", "input": {"messages": messages} | source})


def test_a_default_template_comes_before_a_conversation_alone() -> None:
    version = replace(VERSION, template=TEMPLATE)
    filled: Any = with_default(chat(), version)
    assert [one.content for one in filled.input.messages] == ["Be brief.", "hi"]
    assert (filled.prompt_use, filled.template_place.head, filled.template_place.tail) == (TEMPLATE.use, 1, 0)
    assert filled.input.special_tokens == "text"
    for request in (draft().request, chat(template={"id": "p"}), filled):
        assert with_default(request, version) is request
    same = chat()
    assert with_default(same, VERSION) is same


def test_versions_that_differ_in_their_template_alone_are_alike_for_what_does_without_it() -> None:
    other = replace(VERSION, version=2, base_model="tiny", base_version=1, template=TEMPLATE)
    raw = draft().request
    assert is_indifferent(raw, VERSION, other)
    assert not is_indifferent(chat(), VERSION, other)
    assert not is_indifferent(raw, VERSION, replace(other, sampling=SamplingDefaults(temperature=0.5)))
    assert not is_indifferent(raw, VERSION, replace(other, base_version=3))
    assert not is_indifferent(raw, VERSION, replace(VERSION, version=2))


class Preparing(PromptPreparation):
    """A preparation that notes what it prepares. ``capacity``: of the workers, by queue."""

    def __init__(self, **capacity: int) -> None:
        not_asked: Any = None
        serving = stand_in(serving=lambda queue: stand_in(capacity=capacity.get(queue[-1:])))
        super().__init__(not_asked, serving, not_asked)
        self.again: list[ModelVersion] = []

    def prepare(self, request: Any, version: ModelVersion, policy: Any) -> Any:
        self.again.append(version)
        return "again"


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"a": "1"}},
        {"runner": "torch"},
        {"sampling": SamplingDefaults(temperature=0.5)},
        {"template": TEMPLATE},
        {"engine": SimpleNamespace(accepts=("image",))},
        {"context_window": 1024},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_request_is_prepared_once_for_versions_that_are_alike(changes: dict[str, Any]) -> None:
    prepared: Any = "prepared"
    alike, other = replace(VERSION, version=2), replace(VERSION, version=2, **changes)
    preparing = Preparing()
    assert preparing.prepare_again(draft().request, VERSION, prepared, alike, None) == "prepared"
    assert preparing.prepare_again(draft().request, VERSION, prepared, other, None) == "again"
    assert preparing.again == [other]


def test_a_request_is_prepared_again_for_smaller_workers() -> None:
    prepared: Any = "prepared"
    alike = replace(VERSION, version=2)
    for capacity, expected in (("64", "again"), ("512", "prepared"), ("1024", "prepared")):
        preparing = Preparing(**{"2": int(capacity)})
        assert preparing.prepare_again(draft().request, VERSION, prepared, alike, None) == expected, capacity


def test_a_version_serves_its_own_task() -> None:
    embed = EmbedRequest.model_validate({"task": "embed", "model": "tiny", "input": {"texts": ["a"]}})
    check_task(draft().request, VERSION)
    with pytest.raises(InvalidRequest) as caught:
        check_task(embed, VERSION)
    assert told(caught.value)[1:] == (f"the model tiny {VERSION.spec.purpose}", "invalid_value", "model")


def test_urls_are_checked_unless_a_part_is_not_known_yet() -> None:
    settings = Settings(database_url="postgresql://x/y", redis_url="redis://x")
    request: Any = SimpleNamespace(called_urls=lambda: [("input.images[0].url", "https://127.0.0.1/MARK.png")])
    check_called_urls(request, settings, {"MARK"})
    for unknown in ((), {"OTHER"}):
        with pytest.raises(InvalidRequest) as caught:
            check_called_urls(request, settings, unknown)
        assert (caught.value.code, caught.value.param) == ("invalid_image", "input.images[0].url")
