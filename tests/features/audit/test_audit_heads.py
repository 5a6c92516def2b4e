"""The duty that logs the head of a chain."""

from typing import Any

from structlog.testing import capture_logs

from headrace.features.audit import export
from headrace.features.audit.audit_heads import AuditHeads
from headrace.features.audit.hash_chain import Head
from tests.workers.dispatcher.test_duties import Answers, answers

__all__ = ["answers"]


def test_the_head_of_a_chain_is_logged_when_it_has_moved(answers: Answers) -> None:
    one, two, moved = (
        Head(chain, 1, digest, "2026-11-29") for chain, digest in (("a", "h1"), ("b", "h2"), ("b", "h3"))
    )
    answers.to(export, "heads", [one, two], [one, moved])
    db: Any = None
    duty = AuditHeads(db, "")
    with capture_logs() as logs:
        for _ in range(3):
            duty.log_heads()
    assert [(line["chain"], line["hash"]) for line in logs] == [("a", "h1"), ("b", "h2"), ("b", "h3")]
