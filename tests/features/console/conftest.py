"""A browser for all tests of the console, and a tab for each of them."""

from collections.abc import Iterator

import pytest

from benchmarks.console.chromium import Chromium, Tab, find_chromium, running_chromium
from tests.producer_api.serving import ApiServer


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on this machine: install the package chromium")
    with running_chromium(path) as browser:
        yield browser


@pytest.fixture
def tab(chromium: Chromium, server: ApiServer) -> Iterator[Tab]:
    with chromium.tab() as tab:
        # What the policy forbids is an error in the log too; this also counts what a library would swallow.
        tab.send(
            "Page.addScriptToEvaluateOnNewDocument",
            source="window.refused = []; addEventListener('securitypolicyviolation', (e) => refused.push(e.blockedURI"
            " + ' ' + e.violatedDirective)); window.confirm = () => true;",
        )
        tab.open(f"{server.url}/console")
        tab.wait("document.querySelector('input[name=key]') === document.activeElement")
        yield tab
        assert tab.run("refused") == []
        assert tab.problems == []
