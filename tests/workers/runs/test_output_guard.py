"""A worker of an installation without policies, and a job that was accepted under one."""

from typing import Any

import pytest

from headrace.store.errors import Unavailable
from headrace.store.payloads.job_payload import PinnedPolicy
from headrace.workers.runs import output_guard


def test_without_the_feature_no_text_of_a_job_with_a_policy_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_guard, "parts", lambda *_: [])
    no_database: Any = None
    guards, pinned = output_guard.open_guards(no_database), PinnedPolicy(model="*", version=1)
    with pytest.raises(Unavailable):
        guards.output("acme", pinned, None)
    with pytest.raises(Unavailable):
        guards.texts("acme", pinned, ["x"], "this file")
