// Jobs: search, newest first, one keyset page at a time. The filters are in the address, so a search can be sent on.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { get, post } from "./api.js";
import { ago, count, duration, moment, now, percent, shortId } from "./format.js";
import { useLive } from "./live_store.js";
import { Act, ErrorNote, Heading, ListCard, State, useLoad, usePages } from "./ui.js";

const STATES = ["queued", "running", "succeeded", "failed", "cancelled", "expired"];
const OPEN = ["queued", "running"];
const AGES = { "": "any time", 900: "15 minutes", 3600: "hour", 86400: "day", 604800: "week" };
const PAGE = 50;
const REFRESH_MS = 5000;

export default function JobsPage({ query }) {
  const filter = Object.fromEntries(["status", "model", "age", "metadata", "id"].map((name) => [name, query.get(name) ?? ""]));
  const list = usePages((after, signal) => search(filter, after, signal), Object.values(filter));
  const { live } = useLive();
  const [isLive, setLive] = useState(false);
  const [chosen, setChosen] = useState(new Set());
  useEffect(() => {
    const timer = isLive ? setInterval(() => document.hidden || list.reload(), REFRESH_MS) : 0;
    return () => clearInterval(timer);
  }, [isLive]);
  // Only what is shown can be acted on: another page or search leaves the choice behind.
  const shown = list.data?.data ?? [];
  const choose = (ids, isChosen) => {
    const kept = new Set(shown.map((job) => job.id).filter((id) => chosen.has(id)));
    ids.forEach((id) => (isChosen ? kept.add(id) : kept.delete(id)));
    setChosen(kept);
  };
  // Workers tell how far their jobs are; the list does not.
  const progress = new Map((live?.workers ?? []).flatMap((worker) => worker.jobs.map((job) => [job.id, job.progress])));
  const marked = shown.filter((job) => chosen.has(job.id));
  const all = html`<input
    type="checkbox" aria-label="All jobs of this page" checked=${shown.length > 0 && marked.length === shown.length}
    onChange=${(event) => choose(shown.map((job) => job.id), event.target.checked)}
  />`;
  return html`<div class="head">
      <${Heading}>Jobs<//>
      <span class="grow"></span>
      <${Bulk} jobs=${marked} reload=${list.reload} />
      <label class="row small"><input type="checkbox" checked=${isLive} onChange=${(event) => setLive(event.target.checked)} /> refresh every 5 s</label>
      <button type="button" onClick=${list.reload} disabled=${list.isBusy}>Refresh</button>
    </div>
    <${Filters} key=${query.toString()} filter=${filter} />
    <${ListCard}
      list=${list} label="Jobs" empty=${list.older === null ? "No job matches." : "None of these jobs matches: see older ones."}
      head=${html`<th class="pick">${all}</th><th>Job</th><th>State</th><th class="opt">Model</th><th class="opt">Class</th><th>Accepted</th>
        <th class="num opt">Waited</th><th class="num opt">Took</th><th class="num opt">Tokens in</th><th class="num opt">Out</th>`}
      row=${(job) => html`<${Row} key=${job.id} job=${job} isChosen=${chosen.has(job.id)} progress=${progress.get(job.id) ?? null} choose=${choose} />`}
    />`;
}

// What can be done with the chosen jobs: those that have not ended are cancelled, the others are submitted again.
function Bulk({ jobs, reload }) {
  const open = jobs.filter((job) => OPEN.includes(job.status));
  const ended = jobs.filter((job) => !OPEN.includes(job.status));
  const cancel = (job) => post(`jobs/${job.id}/cancel`);
  const again = async (job) => post("jobs", (await get(`jobs/${job.id}/request`)).body);
  const act = (wanted, run, told) => async () => {
    const refused = [];
    // One after the other, as the limits of the key count requests.
    for (const job of wanted) await run(job).catch((error) => refused.push(error));
    reload();
    return `${told} ${wanted.length - refused.length} of ${wanted.length} jobs${refused.length > 0 ? `: ${refused[0].message}` : ""}`;
  };
  return html`${open.length > 0 && html`<${Act} kind="danger" action=${act(open, cancel, "Cancelled")} confirm=${`Cancel ${open.length} jobs?`}>Cancel ${open.length}<//>`}
    ${ended.length > 0 && html`<${Act} action=${act(ended, again, "Submitted again")} confirm=${`Submit ${ended.length} jobs again?`}>Replay ${ended.length}<//>`}`;
}

async function search(filter, after, signal) {
  const query = new URLSearchParams({ limit: PAGE });
  if (filter.status) query.set("status", filter.status);
  if (filter.model) query.set("model", filter.model);
  if (filter.age) query.set("created_after", Math.floor(now() - Number(filter.age)));
  if (filter.metadata) {
    const [name, ...value] = filter.metadata.split("=");
    query.set(`metadata[${name.trim()}]`, value.join("=").trim());
  }
  if (after !== null) query.set("after", after);
  return get(`jobs?${query}`, { signal });
}

function Filters({ filter }) {
  const models = useLoad((signal) => get("models", { signal }), []);
  const names = [...new Set((models.data?.data ?? []).map((model) => model.root))];
  const [error, setError] = useState(null);
  const submit = (event) => {
    event.preventDefault();
    const fields = Object.fromEntries(new FormData(event.currentTarget.form ?? event.currentTarget));
    if (fields.id.trim() !== "") {
      location.hash = `#/job/${encodeURIComponent(fields.id.trim())}`;
      return;
    }
    if (fields.metadata !== "" && !/^[^=]+=.+$/.test(fields.metadata)) {
      setError(new Error("metadata is searched as name=value"));
      return;
    }
    const query = new URLSearchParams(Object.entries(fields).filter(([, value]) => value !== ""));
    location.hash = `#/jobs?${query}`;
  };
  return html`<search><form class="filters" onSubmit=${submit} aria-label="Search jobs">
      <label class="field">State
        <select name="status" value=${filter.status} onChange=${submit}>
          <option value="">any</option>
          ${STATES.map((state) => html`<option key=${state} value=${state} selected=${state === filter.status}>${state}</option>`)}
        </select>
      </label>
      <label class="field">Model
        <select name="model" onChange=${submit}>
          <option value="">any</option>
          ${names.map((name) => html`<option key=${name} value=${name} selected=${name === filter.model}>${name}</option>`)}
        </select>
      </label>
      <label class="field">Accepted in the last
        <select name="age" onChange=${submit}>
          ${["", "900", "3600", "86400", "604800"].map((age) => html`<option key=${age} value=${age} selected=${age === filter.age}>${AGES[age]}</option>`)}
        </select>
      </label>
      <label class="field">Metadata
        <input name="metadata" placeholder="name=value" value=${filter.metadata} size="16" />
      </label>
      <label class="field">Job id
        <input name="id" placeholder="job_…" size="22" spellcheck="false" />
      </label>
      <button class="primary">Search</button>
    </form>
    <${ErrorNote} error=${error} />
  </search>`;
}

// Of a job that has not ended only whole seconds are known.
function waitedWhole(job) {
  const seconds = (job.started_at ?? now()) - job.created_at;
  return OPEN.includes(job.status) && seconds >= 1 ? seconds : null;
}

function Row({ job, isChosen, progress, choose }) {
  const waited = job.usage?.queue_ms != null ? job.usage.queue_ms / 1000 : waitedWhole(job);
  const took = job.usage?.compute_ms != null ? job.usage.compute_ms / 1000 : null;
  const metadata = Object.entries(job.metadata).map(([name, value]) => `${name}=${value}`).join(" ");
  return html`<tr>
    <td class="pick"><input
      type="checkbox" aria-label=${`Choose ${job.id}`} checked=${isChosen} onChange=${(event) => choose([job.id], event.target.checked)}
    /></td>
    <td>
      <a class="mono" href=${`#/job/${job.id}`} aria-label=${`Job ${job.id}`}>${shortId(job.id)}</a>
      ${metadata !== "" && html`<div class="sub">${metadata}</div>`}
    </td>
    <td><${State} of=${job.status} />${job.status === "running" && progress !== null && html`<div class="sub">${percent(progress)} done</div>`}${job.error !== null && html`<div class="sub mono" title=${job.error.message}>${job.error.code}</div>`}${job.attempt > 1 && html`<div class="sub">attempt ${job.attempt}</div>`}</td>
    <td class="opt">${job.model}@${job.model_version}<div class="sub">${job.task}</div></td>
    <td class="opt">${job.service_class}</td>
    <td class="nowrap"><time datetime=${new Date(job.created_at * 1000).toISOString()} title=${moment(job.created_at)}>${ago(job.created_at)}</time></td>
    <td class="num opt">${duration(waited)}</td>
    <td class="num opt">${duration(took)}</td>
    <td class="num opt">${count(job.usage?.input_tokens)}</td>
    <td class="num opt">${count(job.usage?.output_tokens)}</td>
  </tr>`;
}
