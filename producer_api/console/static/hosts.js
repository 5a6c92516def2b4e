// The model hosts of the Live page: what has a place on each, the memory, and the last events.

import { html } from "./vendor/htm-preact.js";
import { clock } from "./format.js";

const SHOWN = 5;
const GIB = 2 ** 30;

export function Hosts({ hosts }) {
  if (hosts.length === 0) return null;
  return html`<section class="card" aria-labelledby="hosts">
    <div class="title"><h2 id="hosts">Model hosts</h2></div>
    <div class="scroll"><table aria-labelledby="hosts">
      <thead><tr><th>Host</th><th>Versions with a place</th><th class="num">Memory</th><th class="opt">Last events</th></tr></thead>
      <tbody>${hosts.map((host) => html`<${Host} key=${host.name} host=${host} />`)}</tbody>
    </table></div>
  </section>`;
}

function Host({ host }) {
  return html`<tr>
    <td><strong>${host.name}</strong><div class="sub">${host.num_swaps} swaps</div></td>
    <td>${host.places.length === 0 ? html`<span class="muted">none</span>` : host.places.map((place, index) => html`<${Place} key=${index} place=${place} />`)}</td>
    <td class="num">${gibibytes(host.needed_bytes)} of ${gibibytes(host.budget_bytes)} GiB<div class="sub">${gibibytes(host.used_bytes)} in use</div></td>
    <td class="opt small">${host.events.slice(0, SHOWN).map(
      (event, index) => html`<div key=${index}>${clock(event.at)} ${event.queue} ${event.kind}: ${event.reason}</div>`,
    )}</td>
  </tr>`;
}

function Place({ place }) {
  const kind = place.state === "serving" ? "good" : "warn";
  return html`<div>${place.queue} <span class=${`badge ${kind}`}>${place.state}</span></div>`;
}

function gibibytes(bytes) {
  return (bytes / GIB).toFixed(1);
}

// What a model host does about a queue without a worker; null without one.
export function outlookOf(queue) {
  if (queue.host === null || queue.host === undefined) return null;
  if (queue.host.loads_in_s === null) return html`<span class="badge bad" title=${queue.host.reason}>no place</span>`;
  return html`<span class="badge">loads in about ${Math.max(1, Math.round(queue.host.loads_in_s))} s</span>`;
}
