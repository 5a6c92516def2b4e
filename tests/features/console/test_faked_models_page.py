"""The page of models and rollouts, with made-up answers: its whole text, its badges, and the requests that it sends."""

from typing import Any

import pytest

from benchmarks.console.chromium import Tab
from tests.features.console.faked_answers import HISTORY, LIVE
from tests.features.console.faked_api import NOW, click, lines, open_faked, page_text, sends, sse

pytestmark = pytest.mark.timeout(240)

MODEL = {
    "root": "m", "version": 3, "id": "m@3", "aliases": {"prod": 3, "old": 1, "next": 4}, "task": "generate",
    "engine": "own", "context_length": 32_768, "created": NOW - 86_400,
}  # fmt: skip
# The name of a version, that of the whole model, and three other models.
MODELS = [
    MODEL,
    MODEL | {"id": "m"},
    *(MODEL | {"id": f"{name}@1", "root": name, "version": 1, "aliases": {}} for name in "nop"),
]
QUALITY = {
    "against": "m@1", "agreement": 0.9731, "kl": 0.00213, "perplexity": 17.0, "reference_perplexity": 16.0,
}  # fmt: skip
VERSIONS: list[dict[str, Any]] = [
    {"id": "m@3", "state": "ready", "template": {"id": "p", "name": "guide", "version": 2},
     "verification": {"quality": QUALITY}},
    {"id": "n@1", "state": "rejected", "state_reason": "it is wrong", "template": {"id": "p", "name": "", "version": 1},
     "verification": {"quality": None, "not_measured": None}},
    {"id": "o@1", "state": "verifying", "state_reason": None, "template": None,
     "verification": {"quality": None, "not_measured": "too large"}},
]  # fmt: skip
ROLLOUT = {
    "id": "rol_1", "state": "running", "model": "m", "alias": "prod", "stable_version": 2, "candidate_version": 3,
    "reason": None, "percent": 10, "current_step": 0, "steps": [{}, {}], "started_at": NOW - 60, "revision": 7,
}  # fmt: skip
ROLLED_BACK = ROLLOUT | {"id": "rol_2", "state": "rolled_back", "reason": "it was slow", "current_step": 1}
CHECKS = [
    {"name": "error_rate", "decision": "bad", "text": "too many"},
    {"name": "speed", "decision": "undecided", "text": "?"},
]
BADGES = "[...document.querySelectorAll('main .badge')].map((one) => [one.innerText, one.className, one.title])"
BADGES_SHOWN = [
    ["prod", "badge now", ""],
    ["served by 2", "badge good", ""],
    ["rejected", "badge bad", ""],
    ["verifying", "badge warn", ""],
    ["not known", "badge", ""],
    ["running", "badge now", ""],
    ["error rate", "badge bad", "too many"],
    ["speed", "badge ", "?"],
    ["rolled back", "badge bad", ""],
]


def test_the_models(tab: Tab) -> None:
    plot = "<svg xmlns='http://www.w3.org/2000/svg'/>"
    answers = {
        "GET live": [sse("history", HISTORY), sse("live", LIVE)],
        "GET models": {"data": MODELS},
        "GET model_versions": {"data": VERSIONS},
        "GET rollouts": {"data": [ROLLOUT, ROLLED_BACK]},
        "GET rollouts/rol_1": {"checks": CHECKS},
        "GET rollouts/rol_1/plot": plot,
        "POST rollouts/rol_1/pause": {},
        "POST rollouts/rol_1/promote": {},
        "POST rollouts/rol_1/abort": {},
    }
    rollouts_are_judged = "document.querySelectorAll('section[aria-label=Rollouts] .badge').length === 4"
    live_has_come = "document.body.innerText.includes('served by')"
    open_faked(tab, "models", answers, f"{rollouts_are_judged} && {live_has_come}")
    assert lines(tab) == page_text("models")
    assert tab.run(BADGES) == BADGES_SHOWN
    for verb in ("Pause", "Promote", "Abort"):
        click(tab, verb)
        assert sends(tab, "POST", f"rollouts/rol_1/{verb.lower()}")[2:] == ["{}", '"7"']
    click(tab, "Evidence")
    assert tab.wait("document.querySelector('img[alt^=Evidence]')?.alt") == "Evidence against version 3 over time"
