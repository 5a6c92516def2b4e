// Starts the console: the sign-in, the frame of the page, and the choice of the page by the address.

import { h, html, render, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { get } from "./api.js";
import { start, stop, useLive } from "./live_store.js";
import { key, onChange, signIn, signOut } from "./session.js";
import { PAGES } from "./pages.js";
import { ErrorNote, Toast, useModule } from "./ui.js";

function address() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  return { name: name || "live", rest: rest.map(decodeURIComponent), query: new URLSearchParams(query ?? "") };
}

function useAddress() {
  const [current, set] = useState(address);
  useEffect(() => {
    const change = () => set(address());
    addEventListener("hashchange", change);
    return () => removeEventListener("hashchange", change);
  }, []);
  return current;
}

function useKey() {
  const [current, set] = useState(key);
  useEffect(() => onChange(() => set(key())), []);
  return current;
}

const STATUS = { live: "live", connecting: "connecting", lost: "no connection", refused: "refused" };

function Status() {
  const { status, live } = useLive();
  const missing = status === "live" && live !== null && live.missing.length > 0;
  const text = missing ? `no ${live.missing.join(", ")}` : STATUS[status];
  return html`<span class=${`status ${missing ? "lost" : status}`} role="status">${text}</span>`;
}

function Side({ current }) {
  return html`<nav class="side" aria-label="Pages">
    <a class="brand" href="#/live"><img src="console/icon.svg" alt="" /><span>Headrace</span></a>
    <ul>
      ${PAGES.filter((page) => page.title !== null).map(
        (page) => html`<li key=${page.name}>
          <a href=${`#/${page.name}`} aria-current=${page.name === current ? "page" : null}>${page.title}</a>
        </li>`,
      )}
    </ul>
    <div class="foot">
      <${Status} />
      <button type="button" class="small" onClick=${signOut}>Sign out</button>
    </div>
  </nav>`;
}

function SignIn() {
  const [error, setError] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    const token = new FormData(event.currentTarget).get("key").trim();
    setBusy(true);
    try {
      await get("queues", { token });
      signIn(token);
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  return html`<main class="sign-in">
    <form class="card" onSubmit=${submit}>
      <h1 class="brand"><img src="console/icon.svg" alt="" />Headrace console</h1>
      <label class="field">
        API key
        <input
          type="password" name="key" autocomplete="off" spellcheck="false" placeholder="hr_…" required autofocus
        />
      </label>
      <p class="small muted">
        It needs the scope <code>jobs:read</code>. With <code>queues:admin</code> the console shows every tenant's load.
        The key stays in this tab.
      </p>
      <${ErrorNote} error=${error} />
      <button class="primary" disabled=${isBusy}>${isBusy ? "Checking…" : "Open"}</button>
    </form>
  </main>`;
}

// After a change of the page (`focuses`) a screen reader begins with its heading.
function Page({ page, rest, query, focuses }) {
  const loaded = useModule(page.load);
  useEffect(() => {
    if (focuses && loaded !== null) document.querySelector("main h1")?.focus();
  }, [loaded]);
  return loaded === null ? null : h(loaded.default, { rest, query });
}

function Frame() {
  const { name, rest, query } = useAddress();
  const page = PAGES.find((one) => one.name === name) ?? PAGES[0];
  const main = useRef(null);
  const isFirst = useRef(true);
  const place = [name, ...rest].join("/");
  useEffect(() => {
    document.title = `${page.title ?? page.heading} · Headrace`;
    isFirst.current = false;
  }, [place]);
  useEffect(() => {
    start();
    return stop;
  }, []);
  return html`<div class="shell">
    <a class="skip" href="#main" onClick=${(event) => skip(event, main.current)}>To the content</a>
    <${Side} current=${page.within ?? page.name} />
    <main id="main" ref=${main} tabindex="-1">
      <${Page} key=${place} page=${page} rest=${rest} query=${query} focuses=${!isFirst.current} />
    </main>
    <${Toast} />
  </div>`;
}

function skip(event, main) {
  event.preventDefault();
  main.focus();
}

function App() {
  return useKey() === null ? html`<${SignIn} />` : html`<${Frame} />`;
}

// The API answers while the page is drawn.
if (key() !== null) start();
render(html`<${App} />`, document.getElementById("console"));
