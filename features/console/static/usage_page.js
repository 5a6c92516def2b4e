// Usage: what the tenant and each of its keys have used, by model and by day.

import { html, useState } from "./vendor/htm-preact.js";
import { get } from "./api.js";
import { count, now, shortId } from "./format.js";
import { ErrorNote, Heading, useLoad } from "./ui.js";

const DAY_S = 86_400;
const PERIODS = { 1: "today", 7: "7 days", 30: "30 days" };
const NONE = { requests: 0, input: 0, cached: 0, output: 0, embedded: 0, cost: 0 };

export default function UsagePage() {
  const [days, setDays] = useState(7);
  const { data, error, isBusy, reload } = useLoad((signal) => load(days, signal), [days]);
  return html`<div class="head">
      <${Heading}>Usage<//>
      <span class="grow"></span>
      <label class="row small muted">Period
        <select value=${days} onChange=${(event) => setDays(Number(event.target.value))}>
          ${Object.entries(PERIODS).map(([value, name]) => html`<option key=${value} value=${value}>${name}</option>`)}
        </select>
      </label>
      <button type="button" onClick=${reload} disabled=${isBusy}>Refresh</button>
    </div>
    <${ErrorNote} error=${error} />
    ${data !== null && html`
      <${Sums} title="Keys" first="Key" lines=${data.keys} total="The tenant" />
      <${Sums} title="Models" first="Model" lines=${data.models} />
      <${Sums} title="Days" first="Day, in UTC" lines=${data.days} />
      <p class="small muted">Of jobs that have ended. Tokens are those of texts and of embeddings; the cost is that of every task.</p>`}`;
}

// The three reports of the API, added up by key, by model and by day.
async function load(days, signal) {
  const start = (Math.floor(now() / DAY_S) - days + 1) * DAY_S;
  const read = (path, group) =>
    get(`organization/${path}?start_time=${start}&bucket_width=1d&limit=${days}&group_by=api_key_id&group_by=${group}`, { signal });
  const [texts, embeddings, costs, names] = await Promise.all([
    read("usage/completions", "model"), read("usage/embeddings", "model"), read("costs", "line_item"), readNames(signal),
  ]);
  const sums = { keys: new Map(), models: new Map(), days: new Map() };
  const take = (page, used) => page.data.forEach((bucket) => bucket.results.forEach((result) => {
    const values = used(result);
    add(sums.keys, names.get(result.api_key_id) ?? (result.api_key_id === null ? "no key" : shortId(result.api_key_id)), values);
    add(sums.models, result.model ?? result.line_item, values);
    add(sums.days, new Date(bucket.start_time * 1000).toISOString().slice(0, 10), values);
  }));
  take(texts, (one) => ({ requests: one.num_model_requests, input: one.input_tokens, cached: one.input_cached_tokens, output: one.output_tokens }));
  take(embeddings, (one) => ({ requests: one.num_model_requests, embedded: one.input_tokens }));
  take(costs, (one) => ({ cost: one.amount.value }));
  const largest = (lines) => [...lines].sort(([, a], [, b]) => weight(b) - weight(a));
  return { keys: largest(sums.keys), models: largest(sums.models), days: [...sums.days].sort().reverse() };
}

const weight = (line) => line.input + line.output + line.embedded;

function add(sums, name, values) {
  const line = sums.get(name) ?? { ...NONE };
  for (const [field, value] of Object.entries(values)) line[field] += value;
  sums.set(name, line);
}

// Needs the scope admin. A key without it sees the ids of keys.
async function readNames(signal) {
  try {
    const { data } = await get("organization/api_keys?limit=100", { signal });
    return new Map(data.map((key) => [key.id, `${key.name} (${shortId(key.id)})`]));
  } catch {
    return new Map();
  }
}

function Sums({ title, first, lines, total }) {
  const all = { ...NONE };
  lines.forEach(([, line]) => Object.keys(all).forEach((field) => (all[field] += line[field])));
  const most = Math.max(1, ...lines.map(([, line]) => weight(line)));
  return html`<section class="card" aria-label=${title}>
    <div class="title"><h2>${title}</h2></div>
    ${lines.length === 0 ? html`<p class="empty">Nothing was used in this time.</p>` : html`<div class="scroll"><table aria-label=${title}>
      <thead><tr><th>${first}</th><th class="opt">Share</th><th class="num">Requests</th><th class="num">Tokens in</th><th class="num opt">Cached</th>
        <th class="num">Out</th><th class="num opt">Embedded</th><th class="num">Cost</th></tr></thead>
      <tbody>
        ${lines.map(([name, line]) => html`<${Sum} key=${name} name=${name} line=${line} share=${weight(line) / most} />`)}
        ${total !== undefined && html`<${Sum} name=${html`<strong>${total}</strong>`} line=${all} share=${null} />`}
      </tbody>
    </table></div>`}
  </section>`;
}

function Sum({ name, line, share }) {
  return html`<tr>
    <td class="whole">${name}</td>
    <td class="split-wide opt">${share !== null && html`<span class="split"><i class="c0" style=${{ width: `${100 * share}%`, minWidth: 0 }}></i></span>`}</td>
    <td class="num">${count(line.requests)}</td>
    <td class="num">${count(line.input)}</td>
    <td class="num opt">${count(line.cached)}</td>
    <td class="num">${count(line.output)}</td>
    <td class="num opt">${count(line.embedded)}</td>
    <td class="num">${line.cost === 0 ? "–" : `$${line.cost < 1 ? line.cost.toPrecision(2) : line.cost.toFixed(2)}`}</td>
  </tr>`;
}
