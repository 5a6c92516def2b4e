"""A tab of the console that is used by keyboard, and a check of its names, contrasts and widths."""

import json
from typing import Any

from benchmarks.console.chromium import Tab
from tests.processes import wait_for

_LOOKS: tuple[dict[str, Any], ...] = (
    {"width": 1280, "height": 860},
    {"width": 390, "height": 844, "dark": True, "phone": True},
)

# Roles of the accessibility tree that must have a name.
_NAMED = frozenset(
    {"button", "checkbox", "combobox", "dialog", "heading", "image", "link", "progressbar", "searchbox", "spinbutton"}
    | {"table", "textbox", "navigation", "form"}
)

# Texts with less contrast than 4.5 to 1, controls that the Tab key leaves out, and ids that are not unique.
_FAULTS = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const read = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((value, i) => value * a + below[i] * (1 - a));
  const behind = (one) => {
    if (one === null) return [255, 255, 255];
    const colour = read(getComputedStyle(one).backgroundColor);
    return colour[3] === 1 ? colour.slice(0, 3) : over(colour, behind(one.parentElement));
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const faults = [];
  for (const one of document.querySelectorAll("body *")) {
    const says = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim() !== "");
    if (!says || one.closest(":disabled, .hidden, .skip") !== null || !one.checkVisibility()) continue;
    const below = behind(one);
    const [a, b] = [light(over(read(getComputedStyle(one).color), below)), light(below)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    const about = `${one.tagName} ${one.className}: ${one.textContent.slice(0, 40)}`;
    if (contrast < 4.5) faults.push(`contrast ${contrast.toFixed(2)} of ${about}`);
  }
  for (const one of document.querySelectorAll("a[href], button, input, select, textarea"))
    if (one.tabIndex < 0 && !one.matches(".cell")) faults.push(`Tab leaves out ${one.outerHTML.slice(0, 80)}`);
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  ids.forEach((id, at) => ids.indexOf(id) !== at && faults.push(`the id ${id} twice`));
  if (document.querySelectorAll("h1").length !== 1) faults.push("not one h1");
  if (document.documentElement.scrollWidth > innerWidth) faults.push(`${document.documentElement.scrollWidth} wide`);
  return faults;
})()"""


def focus(tab: Tab, what: str) -> None:
    """Wait for an element, and press Tab until it has the focus."""
    tab.wait(f"document.querySelector({json.dumps(what)}) !== null")

    def reached() -> bool:
        if tab.run(f"document.activeElement.matches({json.dumps(what)})"):
            return True
        tab.press("Tab")
        return False

    wait_for(reached, f"the Tab key reaches {what}")


def fill(tab: Tab, text: str) -> None:
    """Type a text into the field with the focus. A tab that was just opened loses keys at first."""

    def is_there() -> bool:
        tab.type(text)
        return bool(tab.run(f"document.activeElement.value === {json.dumps(text)}"))

    wait_for(is_there, f"the field has {text}")


def press(tab: Tab, what: str) -> None:
    """Reach a control by the Tab key, and press Enter."""
    focus(tab, what)
    tab.press("Enter")


def sign_in(tab: Tab, key: str) -> None:
    """Type the key, and wait for the first live event."""
    fill(tab, key)
    tab.press("Enter")
    tab.wait("document.querySelector('nav.side .status.live') !== null")


def open_page(tab: Tab, key: str, page: str, ready: str) -> None:
    """Open a page of the console as if the tab had signed in before, and wait for an element of it."""
    # A new page sets it as well: what the page before has written just now may not be there yet.
    source = f"sessionStorage.setItem('headrace.key', {json.dumps(key)})"
    tab.send("Page.addScriptToEvaluateOnNewDocument", source=source)
    tab.run(source)
    tab.open(f"{tab.run('location.origin')}/console?signed-in#/{page}")
    tab.wait(f"document.querySelector({json.dumps(ready)}) !== null")


def check_access(tab: Tab) -> None:
    """Check names, contrast, the Tab key and the width, on a light desktop and on a dark phone."""
    for look in _LOOKS:
        tab.dress(**look)
        # Two frames: the page is laid out for the new size.
        tab.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        faults = tab.run(_FAULTS)
        assert not faults, (faults, look)
        nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in nodes if not node["ignored"] and node["role"]["value"] in _NAMED]
        nameless = [node["role"]["value"] for node in shown if not node.get("name", {}).get("value")]
        assert not nameless, (nameless, look)
    tab.dress(**_LOOKS[0])
