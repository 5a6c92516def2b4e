// Webhooks: the endpoints and what was sent to them.

import { html, useState } from "./vendor/htm-preact.js";
import { get, post } from "./api.js";
import { ago, moment, now, shortId } from "./format.js";
import { Act, Heading, ListCard, State, useLoad, usePages } from "./ui.js";

const STATES = ["", "pending", "delivered", "failed"];
const DAY_S = 86_400;

export default function WebhooksPage() {
  return html`<div class="head"><${Heading}>Webhooks<//></div>
    <${Endpoints} />
    <${Deliveries} />`;
}

function Endpoints() {
  const list = useLoad((signal) => get("webhook_endpoints", { signal }), []);
  return html`<h2>Endpoints</h2>
    <${ListCard}
      list=${list} label="Endpoints" empty="No endpoint. One is made by POST /v1/webhook_endpoints, which shows its secret once."
      head=${html`<th>URL</th><th>State</th><th class="opt">Events</th><th><span class="hidden">Actions</span></th>`}
      row=${(endpoint) => html`<${Endpoint} key=${endpoint.id} endpoint=${endpoint} reload=${list.reload} />`}
    />`;
}

function Endpoint({ endpoint, reload }) {
  const path = `webhook_endpoints/${endpoint.id}`;
  const enable = async () => {
    await post(`${path}/enable`);
    reload();
  };
  const recover = async () => {
    const { queued } = await post(`${path}/recover`, { since: Math.floor(now() - DAY_S) });
    return `${queued} events of the last day are sent again`;
  };
  return html`<tr>
    <td><span class="mono whole">${endpoint.url}</span><div class="sub">${shortId(endpoint.id)}</div></td>
    <td>${endpoint.disabled_at !== null
      ? html`<span class="badge bad">disabled: ${endpoint.disabled_reason}</span>`
      : endpoint.failing_since !== null
        ? html`<span class="badge warn">failing for ${ago(endpoint.failing_since).replace(" ago", "")}</span>`
        : html`<span class="badge good">enabled</span>`}</td>
    <td class="opt small">${endpoint.events.join(", ")}</td>
    <td class="actions">
      ${endpoint.disabled_at !== null && html`<${Act} kind="small primary" action=${enable} done="The endpoint is enabled">Enable<//>`}
      <${Act} kind="small" action=${() => post(`${path}/test`)} done="A test event is sent">Test<//>
      <${Act} kind="small" action=${recover} confirm="Send the undelivered events of the last day again?">Recover<//>
    </td>
  </tr>`;
}

function Deliveries() {
  const [status, setStatus] = useState("");
  const list = usePages((after, signal) => {
    const query = new URLSearchParams({ limit: 25 });
    if (status !== "") query.set("status", status);
    if (after !== null) query.set("after", after);
    return get(`webhook_deliveries?${query}`, { signal });
  }, [status]);
  return html`<div class="head">
      <h2>Deliveries</h2>
      <span class="grow"></span>
      <label class="row small muted">State
        <select value=${status} onChange=${(event) => setStatus(event.target.value)}>
          ${STATES.map((one) => html`<option key=${one} value=${one}>${one || "any"}</option>`)}
        </select>
      </label>
      <button type="button" onClick=${list.reload}>Refresh</button>
    </div>
    <${ListCard}
      list=${list} label="Deliveries" empty="No delivery matches."
      head=${html`<th>Event</th><th>State</th><th class="num opt">Tries</th><th class="opt">URL</th><th>Last answer</th>
        <th class="opt">Created</th><th><span class="hidden">Actions</span></th>`}
      row=${(one) => html`<${Delivery} key=${one.id} delivery=${one} reload=${list.reload} />`}
    />`;
}

function Delivery({ delivery, reload }) {
  const again = async () => {
    await post(`webhook_deliveries/${delivery.id}/redeliver`);
    reload();
  };
  return html`<tr>
    <td>
      ${delivery.type}
      <div class="sub">${delivery.job_id !== null ? html`<a class="mono" href=${`#/job/${delivery.job_id}`}>${shortId(delivery.job_id)}</a>` : delivery.batch_id !== null ? shortId(delivery.batch_id) : delivery.registry_id}</div>
    </td>
    <td><${State} of=${delivery.status} /></td>
    <td class="num opt">${delivery.attempts}</td>
    <td class="opt mono whole">${delivery.url}</td>
    <td class="small">${delivery.last_status ?? delivery.last_error ?? "–"}</td>
    <td class="opt nowrap" title=${moment(delivery.created_at)}>${ago(delivery.created_at)}</td>
    <td class="actions"><${Act} kind="small" action=${again} done="It is sent again">Redeliver<//></td>
  </tr>`;
}
