"""Limits and times that the documents promise are those of the code."""

from pathlib import Path

import pytest

from headrace.client.job_calls import MAX_RETRIES
from headrace.client.webhooks import TOLERANCE_S
from headrace.features.flows.tools.tools import MAX_TOOLS
from headrace.features.policy import policies
from headrace.store.registry import prompt_templates
from headrace.store.tenants import api_key_admin
from headrace.store.tenants.usage import DETAIL_S

DOCS = Path(__file__).parents[2] / "docs"
DAY_S, HOUR_S = 86_400, 3600
IN_WORDS: dict[float, str] = {7: "seven", 10: "ten"}


def _rows(of: str, most: int, versions: int, num_bytes: int) -> str:
    return f"| {of}; versions of all; bytes of all, as stored | {most:,}; {versions:,}; {num_bytes >> 20} MiB |"


PROMISES = [
    ("limits.md", f"| API keys in force | {api_key_admin.MAX_KEYS:,} |"),
    (
        "limits.md",
        _rows("prompts", prompt_templates.MAX_PROMPTS, prompt_templates.MAX_VERSIONS, prompt_templates.MAX_BYTES),
    ),
    (
        "limits.md",
        _rows("models with a policy", policies.MAX_MODELS, policies.MAX_VERSIONS, policies.MAX_BYTES),
    ),
    ("keys.md", f"[--overlap-hours {api_key_admin.DEFAULT_OVERLAP_S / HOUR_S:g}]"),
    ("keys.md", f'{{"overlap_s": {api_key_admin.DEFAULT_OVERLAP_S}, '),
    ("keys.md", f"would have the same rights for the next {IN_WORDS[api_key_admin.ADMIN_LEFT_FOR.days]} days"),
    ("compatibility.md", f"older than {30 + DETAIL_S / DAY_S:g} days: only by day"),
    ("server-tools.md", f"A tenant has at most {MAX_TOOLS} tools."),
    ("clients.md", f"max_retries={MAX_RETRIES}, "),
    ("clients.md", f"tolerance_s={TOLERANCE_S:g})"),
]


@pytest.mark.parametrize(("page", "promise"), PROMISES)
def test_a_limit_is_the_one_that_its_page_names(page: str, promise: str) -> None:
    assert promise in (DOCS / page).read_text()
