// Jobs: search, newest first, one keyset page at a time. The filters are in the address, so a search can be sent on.

import { html, useState } from "./vendor/htm-preact.js";
import { get } from "./api.js";
import { ago, count, duration, moment, now, shortId } from "./format.js";
import { ErrorNote, Heading, ListCard, State, useLoad, usePages } from "./ui.js";

const STATES = ["queued", "running", "succeeded", "failed", "cancelled", "expired"];
const OPEN = ["queued", "running"];
const AGES = { "": "any time", 900: "15 minutes", 3600: "hour", 86400: "day", 604800: "week" };
const PAGE = 50;

export default function JobsPage({ query }) {
  const filter = Object.fromEntries(["status", "model", "age", "metadata", "id"].map((name) => [name, query.get(name) ?? ""]));
  const list = usePages((after, signal) => search(filter, after, signal), Object.values(filter));
  return html`<div class="head">
      <${Heading}>Jobs<//>
      <span class="grow"></span>
      <button type="button" onClick=${list.reload} disabled=${list.isBusy}>Refresh</button>
    </div>
    <${Filters} key=${query.toString()} filter=${filter} />
    <${ListCard}
      list=${list} label="Jobs" empty="No job matches."
      head=${html`<th>Job</th><th>State</th><th class="opt">Model</th><th class="opt">Class</th><th>Accepted</th>
        <th class="num opt">Waited</th><th class="num">Took</th><th class="num opt">Tokens in</th><th class="num opt">Out</th>`}
      row=${(job) => html`<${Row} key=${job.id} job=${job} />`}
    />`;
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

function Row({ job }) {
  const waited = job.usage?.queue_ms != null ? job.usage.queue_ms / 1000 : waitedWhole(job);
  const took = job.usage?.compute_ms != null ? job.usage.compute_ms / 1000 : null;
  const metadata = Object.entries(job.metadata).map(([name, value]) => `${name}=${value}`).join(" ");
  return html`<tr>
    <td>
      <a class="mono" href=${`#/job/${job.id}`} aria-label=${`Job ${job.id}`}>${shortId(job.id)}</a>
      ${metadata !== "" && html`<div class="sub">${metadata}</div>`}
    </td>
    <td><${State} of=${job.status} />${job.attempt > 1 && html`<div class="sub">attempt ${job.attempt}</div>`}</td>
    <td class="opt">${job.model}@${job.model_version}<div class="sub">${job.task}</div></td>
    <td class="opt">${job.service_class}</td>
    <td class="nowrap"><time datetime=${new Date(job.created_at * 1000).toISOString()} title=${moment(job.created_at)}>${ago(job.created_at)}</time></td>
    <td class="num opt">${duration(waited)}</td>
    <td class="num">${duration(took)}</td>
    <td class="num opt">${count(job.usage?.input_tokens)}</td>
    <td class="num opt">${count(job.usage?.output_tokens)}</td>
  </tr>`;
}
