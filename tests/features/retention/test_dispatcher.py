"""The duties of retention, over a store whose answers are given."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from structlog.testing import capture_logs

from headrace.features.retention import retention
from headrace.features.retention.dispatcher import PART
from headrace.features.retention.retention import ErasureCounts
from headrace.store.errors import Unavailable
from headrace.store.keeper import DutyGroup
from headrace.store.settings import Settings
from tests.stand_ins import stand_in


def test_each_tenant_gets_its_turn_and_one_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[tuple[str, str]] = []
    answers: dict[str, Any] = {
        "ten_1": Unavailable("a row is locked"),
        "ten_2": ErasureCounts(Counter(num_inputs=2), job_ids=("job_1",)),
    }
    answers["ten_2"], answers["ten_3"] = (
        ErasureCounts(Counter(num_inputs=2), job_ids=("job_1",), more=True),
        ErasureCounts(),
    )

    def sweep(_db: object, tenant_id: str, effective: str, _limit: int) -> ErasureCounts:
        swept.append((tenant_id, effective))
        if isinstance(answers[tenant_id], Exception):
            raise answers[tenant_id]
        return answers[tenant_id]

    def forget(_ids: Iterable[str]) -> None:
        raise Unavailable("Redis is away")

    monkeypatch.setattr(retention, "read_all", lambda _db, _default: {name: f"of {name}" for name in answers})
    monkeypatch.setattr(retention, "sweep", sweep)
    monkeypatch.setattr(retention, "sweep_marked", lambda _db, _limit: ErasureCounts())
    context: Any = stand_in(db=None, settings=Settings(), forget_streams=forget)
    failed: dict[str, int] = {}
    with capture_logs() as logs:
        for duties in PART.build(context).duties:
            group = DutyGroup(duties, lambda name, _took_s, num_failed: failed.update({name: num_failed}))
            group.run_due()
    assert swept == [("ten_1", "of ten_1"), ("ten_2", "of ten_2"), ("ten_3", "of ten_3")]
    assert failed == {"erase_marked": 0, "erase_expired": 1}
    told = [(line["event"], line.get("part")) for line in logs]
    assert told == [("dispatcher.forgotten", None), ("dispatcher.streams_left", None), ("duty_failed", "ten_1")]
    (erasing,) = group.duties
    assert erasing.due_at - group.began_at < 5, "ten_2 has more"
