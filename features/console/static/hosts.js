// The model hosts of the Live page: what has a place on each, whose server sleeps, the memory, and the last events.

import { html } from "./vendor/htm-preact.js";
import { clock } from "./format.js";

const SHOWN = 5;
const GIB = 2 ** 30;

export function Hosts({ hosts }) {
  if (hosts.length === 0) return null;
  return html`<section class="card" aria-labelledby="hosts">
    <div class="title"><h2 id="hosts">Model hosts</h2></div>
    <div class="scroll"><table aria-labelledby="hosts">
      <thead><tr><th>Host</th><th>Versions with a place, or asleep</th><th class="num">Memory</th><th class="opt">Last events</th></tr></thead>
      <tbody>${hosts.map((host) => html`<${Host} key=${host.name} host=${host} />`)}</tbody>
    </table></div>
  </section>`;
}

function Host({ host }) {
  return html`<tr>
    <td><strong>${host.name}</strong><div class="sub">${host.num_swaps} swaps</div></td>
    <td><${Versions} host=${host} /></td>
    <td class="num">${gibibytes(host.needed_bytes)} of ${gibibytes(host.budget_bytes)} GiB<div class="sub">${gibibytes(host.used_bytes)} in use</div></td>
    <td class="opt small">${host.events.slice(0, SHOWN).map(
      (event, index) => html`<div key=${index}>${clock(event.at)} ${event.queue} ${event.kind}: ${event.reason}</div>`,
    )}</td>
  </tr>`;
}

// A version whose inference server sleeps has no place; it wakes faster than another one loads.
function Versions({ host }) {
  if (host.places.length + host.asleep.length === 0) return html`<span class="muted">none</span>`;
  return html`${host.places.map((place, index) => html`<${Version} key=${index} name=${place.queue} state=${place.state} kind=${place.state === "serving" ? "good" : "warn"} />`)}
    ${host.asleep.map((name) => html`<${Version} key=${name} name=${name} state="asleep" kind="" />`)}`;
}

function Version({ name, state, kind }) {
  return html`<div>${name} <span class=${`badge ${kind}`}>${state}</span></div>`;
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
