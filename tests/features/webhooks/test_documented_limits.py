"""Limits and times that the documents promise are those of the code."""

import pytest

from headrace.features.webhooks.endpoints import MAX_ENDPOINTS
from headrace.features.webhooks.outbox import ATTEMPTS_KEPT
from headrace.features.webhooks.secrets import DEFAULT_OVERLAP_S
from tests.store.test_documented_limits import DOCS

PROMISES = [
    ("limits.md", f"| webhook endpoints | {MAX_ENDPOINTS} |"),
    ("webhooks.md", f'POST   /v1/webhook_secret/rotate                  {{"overlap_s": {DEFAULT_OVERLAP_S}}}'),
    ("webhooks.md", f"with its last {ATTEMPTS_KEPT} attempts"),
]


@pytest.mark.parametrize(("page", "promise"), PROMISES)
def test_a_limit_is_the_one_that_its_page_names(page: str, promise: str) -> None:
    assert promise in (DOCS / page).read_text()
