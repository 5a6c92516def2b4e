// What all pages share: loading, errors, badges, buttons that act, the message of the last action.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/htm-preact.js";

// Call `load(signal)` now and when `inputs` change. Returns {data, error, isBusy, reload}.
export function useLoad(load, inputs) {
  const [state, setState] = useState({ data: null, error: null, isBusy: true });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const control = new AbortController();
    setState((old) => ({ ...old, isBusy: true }));
    load(control.signal).then(
      (data) => setState({ data, error: null, isBusy: false }),
      (error) => control.signal.aborted || setState((old) => ({ ...old, error, isBusy: false })),
    );
    return () => control.abort();
  }, [...inputs, turn]);
  return { ...state, reload: () => setTurn((n) => n + 1) };
}

// Load a module when the component is first shown. Returns null until it is there.
export function useModule(load) {
  const [module, setModule] = useState(null);
  // Before the first paint: the script is most likely there already.
  useLayoutEffect(() => {
    let isShown = true;
    load().then((loaded) => isShown && setModule(loaded), () => tell("a script could not be loaded: reload the page"));
    return () => {
      isShown = false;
    };
  }, []);
  return module;
}

export function useNow(everyMs = 1000) {
  const [, redraw] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => redraw((n) => n + 1), everyMs);
    return () => clearInterval(timer);
  }, [everyMs]);
}

export function Heading({ children }) {
  return html`<h1 tabindex="-1">${children}</h1>`;
}

export function ErrorNote({ error }) {
  if (error === null || error === undefined) return null;
  return html`<p class="note bad" role="alert">${error.message}</p>`;
}

const TONES = {
  succeeded: "good", running: "now", failed: "bad", expired: "bad", cancelled: "", queued: "warn",
  delivered: "good", pending: "warn", dead: "bad", completed: "good", in_progress: "now", validating: "now",
  finalizing: "now", cancelling: "warn",
};

export function State({ of }) {
  return html`<span class=${`badge ${TONES[of] ?? ""}`}>${String(of).replaceAll("_", " ")}</span>`;
}

let say = () => undefined;

export function tell(text) {
  say(text);
}

export function Toast() {
  const [text, setText] = useState("");
  const timer = useRef(0);
  say = (next) => {
    setText(next);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setText(""), 6000);
  };
  return html`<div class="toast" role="status" aria-live="polite">${text}</div>`;
}

// A button that runs `action` and tells its result. With `confirm` it asks first.
export function Act({ action, children, confirm, done, kind = "" }) {
  const [isBusy, setBusy] = useState(false);
  const click = async () => {
    if (confirm !== undefined && !window.confirm(confirm)) return;
    setBusy(true);
    try {
      const said = await action();
      tell(typeof said === "string" ? said : done ?? "Done");
    } catch (error) {
      tell(error.message);
    }
    setBusy(false);
  };
  return html`<button type="button" class=${kind} disabled=${isBusy} onClick=${click}>${children}</button>`;
}

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    tell(`${what} copied`);
  } catch {
    tell("the browser does not allow copying here");
  }
}

// A page of a list that is read by keyset: `load({after}, signal)` returns {data, last_id, has_more}.
export function usePages(load, inputs) {
  const [afters, setAfters] = useState([null]);
  const first = useRef(true);
  useEffect(() => {
    if (!first.current) setAfters([null]);
    first.current = false;
  }, inputs);
  const after = afters[afters.length - 1];
  const loaded = useLoad((signal) => load(after, signal), [...inputs, after]);
  return {
    ...loaded,
    number: afters.length,
    older: loaded.data?.has_more ? () => setAfters([...afters, loaded.data.last_id]) : null,
    newer: afters.length > 1 ? () => setAfters(afters.slice(0, -1)) : null,
  };
}

export function Pages({ list }) {
  if (list.older === null && list.newer === null) return null;
  return html`<nav class="pages" aria-label="Pages of the list">
    <button type="button" class="small" disabled=${list.newer === null} onClick=${list.newer}>← Newer</button>
    <span class="small muted">Page ${list.number}</span>
    <button type="button" class="small" disabled=${list.older === null} onClick=${list.older}>Older →</button>
  </nav>`;
}

// A list as a card: `head` are the cells of the header, `row(item)` is a table row.
export function ListCard({ list, label, head, row, empty }) {
  const items = list.data?.data ?? [];
  const body = html`<div class="scroll">
    <table aria-label=${label} aria-busy=${list.isBusy}>
      <thead><tr>${head}</tr></thead>
      <tbody>${items.map(row)}</tbody>
    </table>
  </div>`;
  return html`<section class="card" aria-label=${label}>
    ${list.error !== null && html`<div class="body"><${ErrorNote} error=${list.error} /></div>`}
    ${items.length > 0 ? body : list.error === null && html`<p class="empty">${list.data === null ? "Loading…" : empty}</p>`}
    ${list.older !== undefined && html`<${Pages} list=${list} />`}
  </section>`;
}
