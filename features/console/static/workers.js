// Each worker as a row of cells, one for each slot. A cell fills as the tokens of its job come.

import { html, useRef } from "./vendor/htm-preact.js";
import { CLASSES, count, duration, percent, shortId, workerName } from "./format.js";

const LATE_S = 5;
const MOST_CELLS = 256;

export function Workers({ workers, queues, sharesAll }) {
  const expected = queues.reduce((sum, queue) => sum + queue.workers, 0);
  return html`<section class="card" aria-labelledby="workers">
    <div class="title">
      <h2 id="workers">Workers</h2>
      <span class="small muted">${workers.length === 0 ? "" : `${count(held(workers))} jobs in ${alive(workers).length}`}</span>
      <span class="grow"></span>
      ${CLASSES.map((name, rank) => html`<span class=${`key c${rank}`} key=${name}>${name}</span>`)}
      <span class="key idle">free slot</span>
    </div>
    ${workers.length === 0
      ? html`<p class="empty">${expected > 0 ? `${expected} workers are alive, and none tells what it holds.` : "No worker is running."}</p>`
      : workers.map((worker) => html`<${Worker} key=${worker.id} worker=${worker} sharesAll=${sharesAll} />`)}
  </section>`;
}

// The jobs of a lost worker run on others already, or wait.
const alive = (workers) => workers.filter((worker) => worker.health !== "lost");
const held = (workers) => alive(workers).reduce((sum, worker) => sum + worker.jobs.length, 0);

function Worker({ worker, sharesAll }) {
  const isAging = worker.lease_age_s !== null && worker.lease_age_s > worker.lease_s * 0.75;
  const used = worker.total_blocks > 0 ? 1 - worker.free_blocks / worker.total_blocks : null;
  return html`<article class=${`worker ${worker.health}`} aria-label=${`Worker ${worker.id}`}>
    <div class="about">
      <strong>${worker.queue}</strong>
      ${worker.health !== "ok" && html`<span class=${`badge ${worker.health === "late" ? "warn" : "bad"}`}>${worker.health}</span>`}
      <span class="mono" title=${worker.id}>${workerName(worker.id)}</span>
      <span><b>${count(worker.jobs.length)}</b> ${sharesAll ? `of ${worker.slots} slots` : "of your jobs"}</span>
      ${worker.is_reserved && html`<span>takes no others now</span>`}
      ${worker.waiting > 0 && html`<span><b>${count(worker.waiting)}</b> wait inside</span>`}
      ${used !== null && html`<span>KV <b>${percent(used)}</b></span>`}
      ${worker.lease_age_s !== null && html`<span class=${isAging ? "late" : ""}>lease <b>${duration(worker.lease_age_s)}</b> of ${duration(worker.lease_s)}</span>`}
      <span class=${worker.seen_age_s > LATE_S ? "late" : ""}>heartbeat <b>${duration(worker.seen_age_s)}</b></span>
      ${worker.engine !== null && html`<span>${worker.engine}</span>`}
    </div>
    <${Cells} worker=${worker} />
  </article>`;
}

function Cells({ worker }) {
  const list = useRef(null);
  const places = useRef(new Map());
  const shown = arrange(worker.jobs, places.current, Math.min(worker.slots, MOST_CELLS));
  const firstJob = shown.findIndex((job) => job !== null);
  return html`<ul class="cells" ref=${list} aria-label="Jobs that it holds" onKeyDown=${(event) => move(event, list.current)}>
    ${shown.map((job, place) =>
      job === null
        ? html`<li key=${place} aria-hidden="true"><span class="cell idle"></span></li>`
        : html`<li key=${place}><${Cell} key=${job.id} job=${job} isFirst=${place === firstJob} /></li>`,
    )}
  </ul>`;
}

// A job keeps its place while it runs, so that cells do not jump.
function arrange(jobs, places, slots) {
  const ids = new Set(jobs.map((job) => job.id));
  for (const id of [...places.keys()]) if (!ids.has(id)) places.delete(id);
  const taken = new Set(places.values());
  let next = 0;
  for (const job of jobs) {
    if (places.has(job.id)) continue;
    while (taken.has(next)) next += 1;
    places.set(job.id, next);
    taken.add(next);
  }
  const length = Math.max(slots, ...[...places.values()].map((place) => place + 1), 0);
  const shown = Array(length).fill(null);
  for (const job of jobs) shown[places.get(job.id)] = job;
  return shown;
}

function Cell({ job, isFirst }) {
  const told = job.progress ?? null;
  const share = told ?? (job.max_tokens > 0 ? Math.min(1, job.output_tokens / job.max_tokens) : 0);
  const isReading = job.output_tokens === 0 && told === null;
  const name = `${CLASSES[job.class_rank]} job ${shortId(job.id)}, ${does(job, isReading)}, ${duration(job.age_s)}${job.attempt > 1 ? `, attempt ${job.attempt}` : ""}`;
  const kind = `cell c${job.class_rank} ${isReading ? "prefill" : ""} ${job.attempt > 1 ? "again" : ""}`;
  return html`<a class=${kind} href=${`#/job/${job.id}`} title=${name} aria-label=${name} tabindex=${isFirst ? 0 : -1}>
    <i style=${{ transform: `scaleY(${share})` }}></i>
  </a>`;
}

function does(job, isReading) {
  if (isReading) return `reads ${job.input_tokens} tokens`;
  return job.progress == null ? `${job.output_tokens} of ${job.max_tokens} tokens` : `${percent(job.progress)} done`;
}

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

// One stop of the Tab key for each worker; the arrow keys move inside.
function move(event, list) {
  const step = STEPS[event.key];
  if (step === undefined) return;
  event.preventDefault();
  const cells = [...list.querySelectorAll("a")];
  cells[(cells.indexOf(document.activeElement) + step + cells.length) % cells.length]?.focus();
}
