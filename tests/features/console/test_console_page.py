"""The console's page and files: everything comes from this server, and the policy allows nothing inline."""

import posixpath
import re

import httpx2

from headrace.store.settings import Settings
from tests.producer_api.serving import serving

IMPORT = re.compile(r"""(?:^import\s(?:[^"']*?from\s)?|\bimport\()["']([^"']+)["']""", re.MULTILINE)


def test_the_page_and_its_scripts_need_nothing_from_elsewhere(api: httpx2.Client) -> None:
    page = httpx2.get(f"{api.base_url}/console", timeout=60)  # without a key
    assert page.headers["content-type"].startswith("text/html")
    policy = dict(part.strip().partition(" ")[::2] for part in page.headers["content-security-policy"].split(";"))
    nothing = dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")
    own = dict.fromkeys(("script-src", "style-src", "connect-src", "media-src"), "'self'")
    assert policy == {**nothing, **own, "img-src": "'self' data:"}
    assert page.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r"<script>|<style|\sstyle=|\son\w+=|//", page.text.replace("<!doctype", "")), "inline, or away"
    names = re.findall(r'(?:src|href)="console/([^"]+)"', page.text)
    wanted = {*names}
    seen: set[str] = set()
    while wanted - seen:
        name = (wanted - seen).pop()
        seen.add(name)
        file = api.get(f"/console/{name}")
        assert file.status_code == 200, name
        kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
        assert file.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])
        if name.endswith(".js"):
            wanted |= {
                posixpath.normpath(posixpath.join(posixpath.dirname(name), one)) for one in IMPORT.findall(file.text)
            }
    assert {"main.js", "live_page.js", "job_page.js", "vendor/htm-preact.js", "vendor/uplot.js"} <= seen


def test_a_file_is_sent_again_only_when_it_has_changed(api: httpx2.Client) -> None:
    first = api.get("/console/main.js")
    again = api.get("/console/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert first.headers["cache-control"] == "no-cache"


def test_other_paths_are_not_found(settings: Settings, api: httpx2.Client) -> None:
    for path in ("index.html", "nothing.js", "../__init__.py", "..%2f__init__.py", "vendor/", ""):
        assert api.get(f"/console/{path}").status_code == 404, path
    closed = settings.model_copy(update={"open_pages": ("docs",)})
    with serving(closed) as server:
        assert httpx2.get(f"{server.url}/console", timeout=60).status_code == 404
