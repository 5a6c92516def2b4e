"""The pages for people: they need nothing that is not served from here."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from headrace.producer_api.http import openapi_text


def test_the_documentation_needs_nothing_from_elsewhere(api: httpx2.Client) -> None:
    page = api.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    policy = dict(part.strip().partition(" ")[::2] for part in page.headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["script-src"], policy["connect-src"]) == ("'none'", "'self'", "'self'")
    assert policy["frame-ancestors"] == "'none'"
    assert "//" not in page.text.replace("<!doctype", ""), "an address on another server"
    assert not re.search(r"<script>|\son\w+=", page.text), "an inline script, which the policy does not let run"
    files = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text)
    assert files == ["docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "docs/start.js"]
    kinds = {"css": "text/css", "js": "text/javascript"}
    for file in files:
        answer = api.get(f"/{file}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kinds[file.rpartition(".")[2]])
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "public, max-age=3600"
    assert "SwaggerUIBundle" in api.get("/docs/swagger-ui-bundle.js").text
    start = api.get("/docs/start.js").text
    assert ('url: "openapi.json"' in start, 'dom_id: "#swagger-ui"' in start, "validatorUrl: null" in start) == (
        True,
    ) * 3
    assert (page.headers["cache-control"], '<div id="swagger-ui"></div>' in page.text) == ("no-store", True)
    for path in ("/docs/other.js", "/docs/..%2f__init__.py", "/docs/"):
        assert api.get(path).status_code == 404, path


def test_the_root_leads_on(api: httpx2.Client) -> None:
    browser = api.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert (browser.status_code, browser.headers["location"]) == (307, "docs")
    links = api.get("/").json()
    assert links == {
        "name": "headrace",
        "api": "/v1",
        "health": "/readyz",
        "docs": "/docs",
        "openapi": "/openapi.json",
    }
    assert api.get(links["health"]).status_code == 200
    assert api.get(links["openapi"]).json()["openapi"].startswith("3.1")
    refused = api.post("/", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (405, "method_not_allowed")


def test_others_are_answered_while_the_openapi_document_is_made(
    api: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe, begun, answered = openapi_text.describe, threading.Event(), threading.Event()

    def describe_slowly(document: dict[str, Any]) -> dict[str, Any]:
        begun.set()
        assert answered.wait(20), "no other request was answered meanwhile"
        return describe(document)

    monkeypatch.setattr("headrace.producer_api.app.describe", describe_slowly)
    with ThreadPoolExecutor(1) as pool:
        document = pool.submit(api.get, "/openapi.json")
        assert begun.wait(20)
        assert api.get("/healthz").status_code == 200
        answered.set()
        assert document.result(20).json()["paths"]["/v1/jobs"]["post"]
