// Keys and limits: the keys of the tenant, with creation, rotation and revocation, and what of the limits is used.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { call, get, post } from "./api.js";
import { ago, count, moment, now } from "./format.js";
import { SCOPES } from "./scopes.js";
import { Act, ErrorNote, Heading, ListCard, copy, useLoad, usePages } from "./ui.js";

const DAY_S = 86_400;

export default function KeysPage() {
  const [issued, setIssued] = useState(null);
  const [isNew, setNew] = useState(false);
  const list = usePages(
    (after, signal) => get(`organization/api_keys?limit=25${after === null ? "" : `&after=${after}`}`, { signal }), [],
  );
  const show = (key) => {
    setNew(false);
    setIssued(key);
    list.reload();
  };
  return html`<div class="head">
      <${Heading}>Keys and limits<//>
      <span class="grow"></span>
      <button type="button" class="primary" onClick=${() => setNew(true)}>New key</button>
    </div>
    ${isNew && html`<${NewKey} onIssued=${show} onClose=${() => setNew(false)} />`}
    ${issued !== null && html`<${Issued} issued=${issued} onClose=${() => setIssued(null)} />`}
    <${Limits} />
    <h2>Keys</h2>
    <${ListCard}
      list=${list} label="Keys" empty="No key."
      head=${html`<th>Name</th><th>State</th><th class="opt">Scopes</th><th class="opt">Models</th><th class="opt">Last used</th>
        <th><span class="hidden">Actions</span></th>`}
      row=${(key) => html`<${Row} key=${key.id} of=${key} reload=${list.reload} onIssued=${show} />`}
    />`;
}

function Row({ of: key, reload, onIssued }) {
  const path = `organization/api_keys/${key.id}`;
  const hasEnded = key.revoked_at !== null || (key.expires_at !== null && key.expires_at < now());
  const rotate = async () => {
    onIssued(await post(`${path}/rotate`));
    return `${key.name} works for another day beside its successor`;
  };
  const revoke = async () => {
    await call("DELETE", path);
    reload();
    return `${key.name} is revoked`;
  };
  return html`<tr>
    <td><strong>${key.name}</strong><div class="sub mono">${key.redacted_value}</div></td>
    <td><${KeyState} of=${key} hasEnded=${hasEnded} /></td>
    <td class="opt small">${key.scopes.join(", ")}</td>
    <td class="opt small">${key.models?.join(", ") ?? "every model"}</td>
    <td class="opt nowrap">${ago(key.last_used_at)}</td>
    <td class="actions">
      ${!hasEnded && key.replaced_by === null && html`<${Act} kind="small" action=${rotate} confirm=${`Make a successor of ${key.name}? The old key ends in a day.`}>Rotate<//>`}
      ${!hasEnded && html`<${Act} kind="small danger" action=${revoke} confirm=${`Revoke ${key.name} now? Its requests are refused within ten seconds.`}>Revoke<//>`}
    </td>
  </tr>`;
}

function KeyState({ of: key, hasEnded }) {
  if (key.revoked_at !== null) return html`<span class="badge" title=${moment(key.revoked_at)}>revoked</span>`;
  if (hasEnded) return html`<span class="badge">expired</span>`;
  if (key.expires_at !== null) return html`<span class="badge warn">until ${moment(key.expires_at)}</span>`;
  return html`<span class="badge good">in force</span>`;
}

// A dialog is opened by the browser, which then keeps the focus inside and closes it with Escape.
function Dialog({ label, onClose, children }) {
  const place = useRef(null);
  useEffect(() => place.current.showModal(), []);
  return html`<dialog ref=${place} aria-label=${label} onClose=${onClose}>${children}</dialog>`;
}

function NewKey({ onIssued, onClose }) {
  const [error, setError] = useState(null);
  const models = useLoad((signal) => get("models", { signal }), []);
  const names = [...new Set((models.data?.data ?? []).map((model) => model.root))].sort();
  const submit = async (event) => {
    event.preventDefault();
    const fields = new FormData(event.currentTarget);
    const days = Number(fields.get("days"));
    const body = { name: fields.get("name"), scopes: fields.getAll("scope") };
    if (fields.has("model")) body.models = fields.getAll("model");
    if (days > 0) body.expires_in_s = days * DAY_S;
    try {
      onIssued(await post("organization/api_keys", body));
    } catch (problem) {
      setError(problem);
    }
  };
  return html`<${Dialog} label="New key" onClose=${onClose}>
    <form class="stack" onSubmit=${submit} aria-label="New key">
      <h2>New key</h2>
      <label class="field">Name <input name="name" required maxlength="200" autofocus /></label>
      <fieldset class="choices"><legend class="small muted">Scopes</legend>
        ${SCOPES.map((scope) => html`<label class="row small" key=${scope}>
          <input type="checkbox" name="scope" value=${scope} defaultChecked=${scope.startsWith("jobs:")} /> ${scope}
        </label>`)}
      </fieldset>
      <fieldset class="choices"><legend class="small muted">Models, none chosen: every model, also later ones</legend>
        ${names.map((name) => html`<label class="row small" key=${name}><input type="checkbox" name="model" value=${name} /> ${name}</label>`)}
      </fieldset>
      <label class="field">Days until it expires, empty: never <input name="days" type="number" min="1" max="3650" /></label>
      <${ErrorNote} error=${error ?? models.error} />
      <div class="row"><button class="primary">Make the key</button><button type="button" onClick=${onClose}>Close</button></div>
    </form>
  <//>`;
}

function Issued({ issued, onClose }) {
  return html`<${Dialog} label="The key" onClose=${onClose}>
    <div class="stack">
      <h2>${issued.name}</h2>
      <p class="muted">The key is shown once. Keep it where your secrets are.</p>
      <pre class="text" tabindex="0">${issued.value}</pre>
      <div class="row">
        <button type="button" class="primary" onClick=${() => copy(issued.value, "The key")}>Copy</button>
        <button type="button" onClick=${onClose}>Close</button>
      </div>
    </div>
  <//>`;
}

const LIMITS = [
  ["Requests a minute", "requests_per_minute", "requests"], ["Input tokens a minute", "input_tokens_per_minute", "input_tokens"],
  ["Running and queued jobs", "concurrent_jobs", "concurrent_jobs"], ["Queued tokens", "queued_tokens", "queued_tokens"],
  ["Cost this month", "monthly_cost", "cost"], ["Open batches", "live_batches", "live_batches"],
];

function Limits() {
  const { data, error } = useLoad((signal) => get("organization/limits", { signal }), []);
  return html`<section class="card" aria-labelledby="limits">
    <div class="title"><h2 id="limits">Limits of the tenant</h2></div>
    <div class="body">
      <${ErrorNote} error=${error} />
      ${data !== null && html`<dl class="facts">
        ${LIMITS.map(([name, limit, used]) => html`<${Limit} key=${limit} name=${name} most=${data.limits[limit]} used=${data.used[used]} />`)}
      </dl>`}
    </div>
  </section>`;
}

function Limit({ name, most, used }) {
  const share = most > 0 && used !== null ? Math.min(1, used / most) : 0;
  return html`<div>
    <dt>${name}</dt>
    <dd>${used === null ? "–" : count(used)} <span class="muted">${most === null ? "no limit" : `of ${count(most)}`}</span>
      ${most !== null && html`<span class="split"><i class=${share > 0.8 ? "c2" : "c1"} style=${{ width: `${100 * share}%`, minWidth: 0 }}></i></span>`}
    </dd>
  </div>`;
}
