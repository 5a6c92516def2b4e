// The audit log of the tenant, newest first.

import { html, useState } from "./vendor/htm-preact.js";
import { get } from "./api.js";
import { moment, shortId } from "./format.js";
import { Heading, ListCard, usePages } from "./ui.js";

export default function AuditPage() {
  const [type, setType] = useState("");
  const list = usePages((after, signal) => {
    const query = new URLSearchParams({ limit: 50 });
    if (type !== "") query.set("event_types", type);
    if (after !== null) query.set("after", after);
    return get(`organization/audit_logs?${query}`, { signal });
  }, [type]);
  const search = (event) => {
    event.preventDefault();
    setType(new FormData(event.currentTarget).get("type").trim());
  };
  return html`<div class="head"><${Heading}>Audit<//></div>
    <search><form class="filters" onSubmit=${search} aria-label="Search the audit log">
      <label class="field">Event <input name="type" placeholder="queue.paused" value=${type} spellcheck="false" /></label>
      <button class="primary">Search</button>
    </form></search>
    <${ListCard}
      list=${list} label="Audit events" empty="No event matches."
      head=${html`<th>Time</th><th>Event</th><th>By</th><th class="opt">Address</th><th class="opt">Details</th>`}
      row=${(event) => html`<${Row} key=${event.id} event=${event} />`}
    />`;
}

const SHARED = ["id", "object", "type", "effective_at", "actor", "ip_address", "request_id", "before_hash", "after_hash", "chain"];

function Row({ event }) {
  const actor = event.actor.api_key?.id ?? event.actor.session?.user?.id ?? event.actor.type;
  // The subject of an event is in a field of the event's own name.
  const rest = Object.entries(event).filter(([name, value]) => !SHARED.includes(name) && value !== null);
  const about = rest.map(([, value]) => (typeof value === "object" ? JSON.stringify(value) : value)).join(" ");
  return html`<tr>
    <td class="nowrap">${moment(event.effective_at)}</td>
    <td>${event.type}</td>
    <td class="mono nowrap" title=${actor}>${shortId(String(actor))}</td>
    <td class="opt mono">${event.ip_address ?? "–"}</td>
    <td class="opt small muted whole">${about || "–"}</td>
  </tr>`;
}
