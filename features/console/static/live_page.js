// Live: what waits, what runs, and how fast. Everything comes from the one stream of live events.

import { html, useMemo } from "./vendor/htm-preact.js";
import { post } from "./api.js";
import { CLASSES, count, duration, milliseconds, percent } from "./format.js";
import { Hosts, outlookOf } from "./hosts.js";
import { useLive } from "./live_store.js";
import { Act, Heading, useModule } from "./ui.js";
import { Workers } from "./workers.js";

export default function LivePage() {
  const { live, history, status, error } = useLive();
  if (live === null) {
    return html`<div class="head"><${Heading}>Live<//></div>
      <p class=${`note ${error === null ? "" : "bad"}`}>${error ?? "Waiting for the first event…"}</p>`;
  }
  return html`<div class="head">
      <${Heading}>Live<//>
      ${live.share === "own" && html`<span class="badge">your tenant only</span>`}
    </div>
    ${status !== "live" && html`<p class="note bad">No connection to the server: the figures are from the last event.</p>`}
    ${live.missing.map((name) => html`<p class="note bad" key=${name}>The API cannot read ${name}.</p>`)}
    <${Problems} problems=${live.problems} />
    <${Figures} live=${live} history=${history} />
    ${live.cache_hit_rate !== null && html`<p class="muted">Response cache: ${percent(live.cache_hit_rate)} hits since this API process started.</p>`}
    <${Queues} queues=${live.queues} sharesAll=${live.share === "all"} />
    <${Hosts} hosts=${live.hosts} />
    <${Workers} workers=${live.workers} queues=${live.queues} sharesAll=${live.share === "all"} />`;
}

// What the API says needs attention.
function Problems({ problems }) {
  return html`<ul class="problems" aria-label="Needs attention">
    ${problems.map(
      ({ kind, queue, worker, text }) => html`<li class="note" key=${`${kind} ${worker ?? queue}`}>
        <span class=${`badge ${SEVERE.includes(kind) ? "bad" : "warn"}`}>${kind.replaceAll("_", " ")}</span> ${text}
      </li>`,
    )}
  </ul>`;
}

const SEVERE = ["no_worker", "not_taken", "worker_lost", "worker_stalled"];

// The figures are there before the charts, whose library is the largest file of the page.
function Chart(properties) {
  const charts = useModule(() => import("./charts.js"));
  return charts === null ? html`<div class="chart"></div>` : html`<${charts.Chart} ...${properties} />`;
}

const TOKENS = [{ name: "--class-0", fill: true }];
const FIRST = [{ name: "--class-1", fill: false }, { name: "--class-2", fill: false }];
const OCCUPANCY = [{ name: "--class-1", fill: true }];

function Figures({ live, history }) {
  const points = history?.points ?? [];
  const times = useMemo(() => points.map((point) => point.at), [history]);
  const series = (name) => points.map((point) => point[name]);
  const tokens = useMemo(() => [times, series("tokens_per_s")], [history]);
  const first = useMemo(() => [times, series("first_token_p50_ms"), series("first_token_p95_ms")], [history]);
  const occupancy = useMemo(() => [times, series("occupancy")], [history]);
  const last = points[points.length - 1] ?? {};
  return html`<section class="figures" aria-label="The last ten minutes">
    <div class="card figure">
      <div class="name">Tokens per second</div>
      <div class="value">${count(last.tokens_per_s)}</div>
      <${Chart} tell=${count} lines=${TOKENS} data=${tokens} label=${`Tokens per second over ten minutes, now ${count(last.tokens_per_s)}`} />
    </div>
    <div class="card figure">
      <div class="name">First token <span class="row small"><span class="key c1">p50</span><span class="key c2">p95</span></span></div>
      <div class="value">
        ${milliseconds(last.first_token_p50_ms)} <small>${milliseconds(last.first_token_p95_ms)}</small>
      </div>
      <${Chart} tell=${milliseconds} lines=${FIRST} data=${first} label=${`Time to the first token over ten minutes, now p50 ${milliseconds(last.first_token_p50_ms)}, p95 ${milliseconds(last.first_token_p95_ms)}`} />
    </div>
    <div class="card figure">
      <div class="name">Occupancy</div>
      <div class="value">${percent(last.occupancy)}</div>
      <${Chart} tell=${percent} lines=${OCCUPANCY} data=${occupancy} label=${`Share of the slots in use over ten minutes, now ${percent(last.occupancy)}`} />
    </div>
    <${Backlog} queues=${live.queues} />
  </section>`;
}

function Backlog({ queues }) {
  const waiting = queues.reduce((sum, queue) => sum + queue.queued.jobs, 0);
  const running = queues.reduce((sum, queue) => sum + queue.running, 0);
  const of = CLASSES.map((name) => queues.reduce((sum, queue) => sum + queue.by_class[name].jobs, 0));
  const most = Math.max(1, ...of);
  return html`<div class="card figure">
    <div class="name">Waiting jobs</div>
    <div class="value">${count(waiting)} <small>${count(running)} running</small></div>
    <div class="stacked">
      ${CLASSES.map(
        (name, rank) => html`<div class="line" key=${name}>
          <span>${name}</span>
          <span class="split"><i class=${`c${rank}`} style=${{ width: `${(100 * of[rank]) / most}%`, minWidth: 0 }}></i></span>
          <b>${count(of[rank])}</b>
        </div>`,
      )}
    </div>
  </div>`;
}

function Queues({ queues, sharesAll }) {
  return html`<section class="card" aria-labelledby="queues">
    <div class="title">
      <h2 id="queues">Queues</h2>
      <span class="grow"></span>
      ${CLASSES.map((name, rank) => html`<span class=${`key c${rank}`} key=${name}>${name}</span>`)}
    </div>
    ${queues.length === 0
      ? html`<p class="empty">No model is registered.</p>`
      : html`<div class="scroll"><table aria-labelledby="queues">
          <thead><tr>
            <th>Queue</th><th class="opt">Waiting</th><th class="num">Jobs</th><th class="num opt">Tokens</th>
            <th class="num opt">Oldest</th><th class="num opt">Rate</th><th class="num">Clears in</th>
            ${sharesAll && html`<th class="opt">Most from</th>`}<th><span class="hidden">Actions</span></th>
          </tr></thead>
          <tbody>${queues.map((queue) => html`<${Queue} key=${queue.name} queue=${queue} sharesAll=${sharesAll} />`)}</tbody>
        </table></div>`}
  </section>`;
}

function Queue({ queue, sharesAll }) {
  const total = Math.max(1, queue.queued.jobs);
  const isPaused = queue.paused_at !== null;
  const act = (verb) => () => post(`queues/${encodeURIComponent(queue.name)}/${verb}`, {});
  return html`<tr>
    <td>
      <strong>${queue.name}</strong>
      <div class="sub">${workersOf(queue)}</div>
    </td>
    <td class="split-wide opt">
      <span class="split" role="img" aria-label=${CLASSES.map((name) => `${name} ${queue.by_class[name].jobs}`).join(", ")}>
        ${CLASSES.map((name, rank) => {
          const jobs = queue.by_class[name].jobs;
          return jobs > 0 && html`<i key=${name} class=${`c${rank}`} style=${{ width: `${(100 * jobs) / total}%` }} title=${`${name}: ${jobs}`}></i>`;
        })}
      </span>
    </td>
    <td class="num">${count(queue.queued.jobs)}</td>
    <td class="num opt">${count(queue.queued.tokens)}</td>
    <td class="num opt">${queue.queued.jobs > 0 ? duration(queue.oldest_age_s) : "–"}</td>
    <td class="num opt">${queue.rate === null ? "–" : `${count(queue.rate.tokens_per_s)} tok/s`}</td>
    <td class="num">${clears(queue)}</td>
    ${sharesAll && html`<td class="opt small">${queue.tenants.map(tenantLoad).join(" · ") || html`<span class="muted">–</span>`}</td>`}
    <td class="actions">
      ${sharesAll &&
      (isPaused
        ? html`<${Act} kind="small primary" action=${act("resume")} done=${`${queue.name} is resumed`}>Resume<//>`
        : html`<${Act} kind="small" action=${act("pause")} confirm=${`Start no more jobs of ${queue.name}, of any tenant, until it is resumed?`} done=${`${queue.name} is paused`}>Pause<//>`)}
    </td>
  </tr>`;
}

function workersOf(queue) {
  if (queue.paused_at !== null) return html`<span class="badge warn">paused</span>`;
  if (queue.workers === 0 && queue.host !== null) return outlookOf(queue);
  if (queue.workers === 0) return html`<span class=${`badge ${queue.queued.jobs > 0 ? "bad" : ""}`}>no worker</span>`;
  const told = `${queue.workers} ${queue.workers === 1 ? "worker" : "workers"}, ${count(queue.running)} running`;
  if (!queue.scaling) return told;
  return html`${told}<div class="sub" title=${queue.scaling.reason}>${queue.scaling.workers} wanted: ${queue.scaling.reason}</div>`;
}

function clears(queue) {
  if (queue.queued.jobs === 0) return "–";
  return queue.clears_in_s === null ? "not known" : duration(queue.clears_in_s);
}

function tenantLoad(tenant) {
  return `${tenant.name ?? tenant.id} ${count(tenant.jobs)}`;
}
