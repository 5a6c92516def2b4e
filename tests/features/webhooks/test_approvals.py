"""Approvals of tools' calls that wait, told by webhooks."""

from contextlib import closing

from headrace.features.flows.store.approvals import list_approvals
from headrace.features.webhooks import endpoints
from headrace.store.db.database import Database
from headrace.store.jobs.erasure import purge_job
from headrace.store.jobs.jobs import NewJob, accept
from headrace.store.payloads.tool_approval import ApprovalState
from headrace.store.settings import Settings
from tests.features.flows.store.test_approvals import ACTOR, ONE, answer, parked
from tests.features.flows.store.test_flows import Flow
from tests.sealing import TurnedSeal
from tests.store.making import MakeJob, Query, new_flow


def test_a_webhook_tells_of_each_wait_and_reasons_are_sealed_and_erased(
    settings: Settings, make_job: MakeJob, query: Query
) -> None:
    named = {"url": "https://hooks.example.com/job", "events": ["job.approval_required"]}
    ends = {"url": "https://hooks.example.com/ends", "events": None}
    with closing(Database(settings.database_url, pool_size=1, application_name="t", seal=TurnedSeal("k"))) as sealing:
        parents: list[NewJob] = [new_flow(make_job, ONE, webhook=hook) for hook in (named, ends)]
        accept(sealing, parents)
        endpoints.create_endpoint(sealing, parents[0].tenant_id, url="https://hooks.example.com/all", actor="t")
        flow, other = (Flow(sealing, parent) for parent in parents)
        asked = parked(flow)
        parked(other)
        sent = "SELECT url FROM webhook_deliveries JOIN jobs ON jobs.id = job_id WHERE parent_id = :id ORDER BY url"
        assert [row["url"][-4:] for row in query(sent, id=flow.id)] == ["/all", "/job"]
        assert [row["url"][-4:] for row in query(sent, id=other.id)] == ["/all"]
        answer(flow, asked, False, "too dear")
        stored = "SELECT reason::text AS reason FROM tool_approvals WHERE id = :id"
        assert "dear" not in query(stored, id=asked.id)[0]["reason"]
        assert list_approvals(sealing, flow.tenant, job_id=flow.id)[0].reason == "too dear"
        flow.run("only:1", "only:2", "only:3")
        purge_job(sealing, flow.tenant, flow.id, actor=ACTOR)
        (found,) = list_approvals(sealing, flow.tenant, job_id=flow.id)
        assert (found.reason, found.arguments, found.state) == (None, None, ApprovalState.REFUSED)
