"""A tab whose page gets prepared answers instead of those of the API, at a fixed time, and notes its requests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks.console.chromium import Tab

NOW = 1_795_600_000
"""The time of the page, in Unix seconds: 2026-11-25 09:46:40 UTC."""

_TEXTS = Path(__file__).parent / "page_texts"

# ``answers``: by method and path without the query. A path whose answer is a list of texts is a stream of events.
_FAKE = """
(() => {
  const answers = %s;
  Date.now = () => %d;
  sessionStorage.setItem("headrace.key", "hr_faked");
  window.asked = [];
  const stream = (events) => new ReadableStream({ start: (control) => {
    for (const event of events) control.enqueue(new TextEncoder().encode(event));
  } });
  // The message of an action stays, so that a test on a busy machine does not miss it.
  const later = window.setTimeout;
  window.setTimeout = (run, ms) => later(run, ms === 6000 ? 3_600_000 : ms);
  const real = window.fetch;
  window.fetch = async (url, options = {}) => {
    const path = decodeURIComponent(new URL(url).pathname.replace(/^.*\\/v1\\//, ""));
    const described = url.href?.endsWith("/openapi.json") ? answers["openapi.json"] : undefined;
    if (described !== undefined) return Response.json(described);
    if (!new URL(url).pathname.includes("/v1/")) return real(url, options);
    const method = options.method ?? "GET";
    const query = decodeURIComponent(new URL(url).search);
    const match = options.headers["If-Match"] ?? null;
    if (path !== "live") window.asked.push([method, path + query, options.body ?? null, match]);
    const found = answers[`${method} ${path}`];
    if (found === undefined) return Response.json({ error: { message: `no answer for ${path}` } }, { status: 404 });
    if (found.refused !== undefined) return Response.json({ error: { message: found.refused } }, { status: 410 });
    if (Array.isArray(found)) return new Response(stream(found));
    return typeof found === "string" ? new Response(found) : Response.json(found);
  };
})()
"""


def sse(name: str, data: Any, number: int = 1) -> str:
    return f"event: {name}\nid: {number}\ndata: {json.dumps(data)}\n\n"


def open_faked(tab: Tab, page: str, answers: Mapping[str, Any], ready: str) -> None:
    """Open a page of the console with these answers, and wait until the expression ``ready`` is true on it."""
    fixed = {"GET live": [], **answers}
    tab.send("Page.addScriptToEvaluateOnNewDocument", source=_FAKE % (json.dumps(fixed), NOW * 1000))
    use_utc(tab)
    tab.dress(width=1280, height=860)
    tab.open(f"{tab.run('location.origin')}/console?{quote(page, '')}#/{page}")
    # ``asked`` is there once the new page has begun: the page before could be ready as well.
    tab.wait(f"window.asked !== undefined && ({ready})")


def use_utc(tab: Tab) -> None:
    """Let the page show times in UTC on a machine of any time zone."""
    tab.send("Emulation.setTimezoneOverride", timezoneId="UTC")


def rows(number: int) -> str:
    """The expression that is true once the tables of the page have this number of rows."""
    return f"document.querySelectorAll('tbody tr').length === {number}"


def page_text(page: str) -> list[str]:
    """The lines that a page has to show, from ``page_texts``."""
    return (_TEXTS / f"{page}.txt").read_text(encoding="utf-8").splitlines()


def snippet(language: str) -> str:
    """The program in a language that the console has to write, from ``page_texts``."""
    return (_TEXTS / f"snippet_{language}.txt").read_text(encoding="utf-8")


def asked(tab: Tab) -> list[list[str | None]]:
    """What the page has sent: method, path with its query, body, and the revision that it expects."""
    found: list[list[str | None]] = tab.run("asked")
    return found


def lines(tab: Tab, what: str = "main") -> list[str]:
    """The lines of text of an element, without empty ones. Cells of a row are on one line."""
    text: str = tab.run(f"document.querySelector({json.dumps(what)}).innerText")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def click(tab: Tab, name: str) -> None:
    """Press the first enabled button with this text, once it is there."""
    enter(tab, {}, name)


def enter(tab: Tab, values: Mapping[str, str], name: str) -> None:
    """Fill in fields, and press the first enabled button with this text, once all of them are there.

    All is done by one script: a page that is drawn in between would empty the fields, and could exchange the button.
    """
    tab.wait(f"""(() => {{
      const values = {json.dumps(values)};
      const field = (name) => document.querySelector(`[name=${{name}}]`);
      const buttons = [...document.querySelectorAll("button:enabled")];
      const button = buttons.find((one) => one.textContent.trim() === {json.dumps(name)});
      if (button === undefined || Object.keys(values).some((one) => field(one) === null)) return false;
      for (const [one, value] of Object.entries(values)) field(one).value = value;
      button.click();
      return true;
    }})()""")


def sends(tab: Tab, method: str, path: str) -> list[str | None]:
    """Wait until the page has sent this; return it."""
    found = f"asked.find((one) => one[0] === {json.dumps(method)} && one[1] === {json.dumps(path)})"
    sent: list[str | None] = tab.wait(found)
    return sent


def sent_body(tab: Tab, path: str) -> Any:
    """Wait until the page has sent a POST to this path; return its body."""
    return json.loads(sends(tab, "POST", path)[2] or "")


def toast_says(tab: Tab, text: str) -> None:
    """Wait until the message of the last action is this text."""
    tab.wait(f"document.querySelector('.toast').innerText === {json.dumps(text)}")
