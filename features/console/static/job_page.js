// One job: its state, its timeline, its request and answer, and what can be done with it.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { get, post, readEvents } from "./api.js";
import { Files, Progress, filesOf } from "./files.js";
import { clock, count, duration, milliseconds, moment, now, readable, shortId, workerName } from "./format.js";
import { useLive } from "./live_store.js";
import { curl, node, python } from "./snippets.js";
import { Timeline, lanes } from "./timeline.js";
import { Act, ErrorNote, Heading, State, copy, useLoad, useNow } from "./ui.js";

const OPEN = ["queued", "running"];

export default function JobPage({ rest: [id] }) {
  const path = `jobs/${encodeURIComponent(id)}`;
  const { data, error, reload } = useLoad((signal) => load(path, id, signal), [id]);
  const isOpen = data !== null && OPEN.includes(data.job.status);
  useNow(isOpen ? 1000 : 3_600_000);
  const { text, progress } = useStream(path, isOpen, reload);
  if (data === null) {
    return html`<div class="head"><${Heading}>Job ${shortId(id)}<//></div><${ErrorNote} error=${error} />`;
  }
  const { job, timeline, request, deliveries } = data;
  return html`<div class="head">
      <${Heading}>Job <span class="mono">${shortId(id)}</span><//>
      <${State} of=${job.status} />
      <span class="grow"></span>
      <${Actions} job=${job} request=${request} reload=${reload} />
    </div>
    <${ErrorNote} error=${error} />
    ${job.error !== null && html`<p class="note bad"><strong>${job.error.code}</strong>: ${job.error.message}</p>`}
    <${Wait} job=${job} />
    ${job.waiting_for !== null && html`<${Approvals} job=${job} reload=${reload} />`}
    <section class="card" aria-labelledby="timeline">
      <div class="title"><h2 id="timeline">Timeline</h2></div>
      <div class="body"><${Timeline} lines=${lanes(job, timeline, deliveries, now())} /></div>
    </section>
    ${job.steps !== null && html`<${Steps} steps=${job.steps} />`}
    <${Facts} job=${job} attempts=${timeline.attempts.length} />
    <div class="two">
      <${Request} request=${request} />
      <${Answer} job=${job} text=${text} progress=${isOpen ? progress ?? job.progress : null} />
    </div>
    <${Events} timeline=${timeline} />`;
}

// Why the job waits, as the Live page tells it of the job's queue. A step without a place waits for others before it.
function Wait({ job }) {
  const { live } = useLive();
  if (job.status !== "queued" || job.steps !== null) return null;
  if (job.parent_id !== null && job.queue.position === null) {
    return html`<p class="note">It waits: steps of <a href=${`#/job/${job.parent_id}`}>its job</a> must end before.</p>`;
  }
  const found = live?.problems.find((problem) => problem.queue === job.queue.name && problem.cause !== null);
  return found !== undefined && html`<p class="note warn">It waits: ${found.cause}.</p>`;
}

async function load(path, id, signal) {
  const [job, timeline, request, deliveries] = await Promise.all([
    get(path, { signal }),
    get(`${path}/timeline`, { signal }),
    get(`${path}/request`, { signal }).catch((error) => ({ error })),
    readDeliveries(id, signal),
  ]);
  return { job, timeline, request, deliveries };
}

// Needs webhooks:admin. A key without it sees the job without its webhooks.
async function readDeliveries(id, signal) {
  try {
    const list = await get(`webhook_deliveries?job_id=${encodeURIComponent(id)}&limit=5`, { signal });
    return await Promise.all(list.data.map((one) => get(`webhook_deliveries/${one.id}`, { signal })));
  } catch {
    return [];
  }
}

// The text of a job that has not ended, as it is generated, and how far its task says it is. `reload` is called when the
// job starts and ends.
function useStream(path, isOpen, reload) {
  const [text, setText] = useState("");
  const [progress, setProgress] = useState(null);
  useEffect(() => {
    if (!isOpen) return undefined;
    const control = new AbortController();
    let whole = "";
    let cursor = "";
    const onEvent = ({ name, id, data }) => {
      cursor = id || cursor;
      if (name === "job.delta") whole += data.text;
      else if (name === "job.restarted") whole = data.text;
      else if (name === "job.progress") setProgress(data);
      else if (name !== "job.queued") reload();
      setText(whole);
    };
    const follow = async () => {
      while (!control.signal.aborted) {
        const query = cursor === "" ? "" : `?starting_after=${cursor}`;
        try {
          await readEvents("GET", `${path}/events${query}`, onEvent, { signal: control.signal });
          return;
        } catch {
          await new Promise((done) => setTimeout(done, 1500));
        }
      }
    };
    follow();
    return () => control.abort();
  }, [path, isOpen]);
  return { text, progress };
}

function Actions({ job, request, reload }) {
  const path = `jobs/${encodeURIComponent(job.id)}`;
  const cancel = async () => {
    await post(`${path}/cancel`);
    reload();
    return "The job is being cancelled";
  };
  const again = async () => {
    const made = await post("jobs", request.body);
    location.hash = `#/job/${made.id}`;
    return `Submitted again as ${shortId(made.id)}`;
  };
  const copies = { curl, Python: python, Node: node };
  return html`<div class="row" role="group" aria-label="Actions">
    ${request.body !== undefined &&
    Object.entries(copies).map(
      ([name, write]) => html`<button type="button" key=${name} onClick=${() => copy(write(request.body), `The request as ${name}`)}>
        Copy ${name}
      </button>`,
    )}
    ${OPEN.includes(job.status)
      ? html`<${Act} kind="danger" action=${cancel} confirm="Cancel this job?">Cancel<//>`
      : request.body !== undefined && html`<${Act} kind="primary" action=${again}>Replay<//>`}
  </div>`;
}

// The calls of tools that wait for an approval. A key without jobs:write is told so when it answers.
function Approvals({ job, reload }) {
  return html`<section class="card" aria-labelledby="approvals">
    <div class="title"><h2 id="approvals">Waits for approval</h2></div>
    <div class="body stack">
      ${job.waiting_for.map((asked) => html`<${Asked} key=${asked.id} asked=${asked} reload=${reload} />`)}
    </div>
  </section>`;
}

function Asked({ asked, reload }) {
  const reason = useRef(null);
  const answer = async (given) => {
    try {
      await post(`jobs/${encodeURIComponent(asked.job_id)}/approvals/${encodeURIComponent(asked.id)}`, given);
    } finally {
      reload(); // also if it was answered elsewhere meanwhile
    }
    return given.approve ? `The call of ${asked.tool} goes on` : `The call of ${asked.tool} is refused`;
  };
  const refuse = () => {
    const why = reason.current.value.trim();
    return answer(why === "" ? { approve: false } : { approve: false, reason: why });
  };
  return html`<div class="stack" role="group" aria-label=${`The call ${asked.step}`}>
    <p><strong>${asked.tool}</strong> <span class="small muted">${asked.step}, refused if not approved by ${moment(asked.expires_at)}</span></p>
    <pre class="text" tabindex="0">${asked.arguments ?? "The arguments are no longer kept."}</pre>
    <div class="filters">
      <${Act} kind="primary" action=${() => answer({ approve: true })} confirm=${`Let ${asked.tool} be called with these arguments?`}>Approve<//>
      <${Act} kind="danger" action=${refuse}>Refuse<//>
      <label class="field grow">Reason of a refusal, for the model <input name="reason" ref=${reason} maxlength="1000" /></label>
    </div>
  </div>`;
}

function Steps({ steps }) {
  return html`<section class="card" aria-labelledby="steps">
    <div class="title"><h2 id="steps">Steps</h2></div>
    <div class="scroll"><table aria-labelledby="steps">
      <thead><tr><th>Step</th><th>State</th><th>Model</th><th class="opt">Task</th><th class="opt">Needs</th>
        <th class="num">Attempts</th><th class="num">Tokens in, out</th></tr></thead>
      <tbody>${steps.map(
        (step) => html`<tr key=${step.name}>
          <td><a href=${`#/job/${step.job_id}`}>${step.name}</a></td>
          <td><${State} of=${step.status} /> ${step.error !== null && html`<span class="small">${step.error.code}</span>`}</td>
          <td class="nowrap">${step.model}@${step.model_version}</td><td class="opt">${step.task}</td>
          <td class="opt">${step.needs.join(", ") || "–"}</td><td class="num">${step.attempt}</td>
          <td class="num">${step.usage === null ? "–" : `${count(step.usage.input_tokens)}, ${count(step.usage.output_tokens)}`}</td>
        </tr>`,
      )}</tbody>
    </table></div>
  </section>`;
}

function Facts({ job, attempts }) {
  const usage = job.usage ?? {};
  const decodeMs = usage.first_token_ms == null ? null : usage.queue_ms + usage.compute_ms - usage.first_token_ms;
  const facts = {
    "Id": html`<span class="mono">${job.id}</span>`,
    ...(job.parent_id === null ? {} : { "Step of": html`<a href=${`#/job/${job.parent_id}`}>${shortId(job.parent_id)}</a>` }),
    ...(job.steps === null
      ? { "Model": `${job.model}@${job.model_version}`, "Task": job.task }
      : { "Steps": `${job.steps.filter((step) => step.status === "succeeded").length} of ${job.steps.length} succeeded` }),
    "Class, priority": `${job.service_class}, ${job.priority}`,
    "Accepted": moment(job.created_at),
    "Deadline": moment(job.expires_at),
    ...(job.steps === null ? { "Charged attempts": `${job.attempt} of ${job.max_attempts}` } : {}),
    [attempts > 1 ? "Last attempt began after" : "Waited"]: milliseconds(usage.queue_ms),
    "First token after": milliseconds(usage.first_token_ms),
    "Computed": milliseconds(usage.compute_ms),
    "Tokens in, out": job.usage === null ? "–" : `${count(usage.input_tokens)} (${count(usage.cached_tokens)} cached), ${count(usage.output_tokens)}`,
    "Tokens per second": decodeMs > 0 && usage.output_tokens > 1 ? ((1000 * (usage.output_tokens - 1)) / decodeMs).toFixed(1) : "–",
    "Cost": usage.cost == null ? "no price" : usage.cost.toPrecision(3),
    ...(job.cache === null ? {} : { "Response cache": job.cache }),
    ...(job.truncated === null ? {} : { "Left out of the input": `${count(job.truncated.tokens)} tokens, ${count(job.truncated.turns)} turns` }),
    ...Object.fromEntries(Object.entries(job.metadata).map(([name, value]) => [`metadata ${name}`, value])),
  };
  if (job.status === "queued") {
    const { position, estimated_start_at: at } = job.queue;
    facts.Waited = `so far ${duration(now() - job.created_at)}`;
    facts["Place in the queue"] = position === null ? "not known" : `${position}${at === null ? "" : `, starts about ${clock(at)}`}`;
  }
  return html`<section class="card" aria-label="Facts"><div class="body">
    <dl class="facts">
      ${Object.entries(facts).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
    </dl>
  </div></section>`;
}

function Request({ request }) {
  const input = request.body?.input;
  return html`<section class="card" aria-labelledby="request">
    <div class="title"><h2 id="request">Request</h2></div>
    <div class="body stack">
      ${request.error !== undefined && html`<p class="muted">${request.error.message}</p>`}
      ${input?.messages?.map(
        (message, index) => html`<div class="message" key=${index}>
          <div class="role">${message.role}</div>
          <pre class="text" tabindex="0">${typeof message.content === "string" ? message.content : readable(message.content ?? message)}</pre>
        </div>`,
      )}
      ${input?.prompt !== undefined && html`<pre class="text" tabindex="0">${input.prompt}</pre>`}
      ${input !== undefined && input?.messages === undefined && input?.prompt === undefined && html`<pre class="text" tabindex="0">${readable(input)}</pre>`}
      ${request.body !== undefined && html`<details>
        <summary class="small muted">The whole body</summary>
        <pre class="text" tabindex="0">${readable(request.body)}</pre>
      </details>`}
    </div>
  </section>`;
}

function Answer({ job, text, progress }) {
  const output = job.output;
  const hasFiles = filesOf(job).length > 0;
  const shown = output?.text ?? text;
  return html`<section class="card" aria-labelledby="answer" aria-busy=${OPEN.includes(job.status)}>
    <div class="title">
      <h2 id="answer">Answer</h2>
      ${output?.finish_reason !== undefined && html`<span class="small muted">ended by ${output.finish_reason}</span>`}
    </div>
    <div class="body stack">
      <${Progress} progress=${progress} />
      ${hasFiles && html`<${Files} job=${job} />`}
      ${shown !== "" ? html`<pre class="text" tabindex="0">${shown}</pre>` : output === null && html`<p class="muted">${job.purged_at !== null ? "It is no longer kept." : "None yet."}</p>`}
      ${output !== null && output.text === undefined && html`<pre class="text" tabindex="0">${readable(output)}</pre>`}
      ${output?.tool_calls?.length > 0 && html`<pre class="text" tabindex="0">${readable(output.tool_calls)}</pre>`}
    </div>
  </section>`;
}

function Events({ timeline }) {
  const start = timeline.events[0]?.at ?? 0;
  const about = ({ worker, engine, ...detail }) =>
    [worker && workerName(worker), engine, ...Object.entries(detail).map(([name, value]) => `${name} ${JSON.stringify(value)}`)]
      .filter(Boolean).join(", ");
  return html`<section class="card" aria-labelledby="events">
    <div class="title"><h2 id="events">Events</h2></div>
    <div class="scroll"><table aria-labelledby="events">
      <thead><tr><th>Time</th><th class="num">After</th><th>Event</th><th>Detail</th></tr></thead>
      <tbody>${timeline.events.map(
        (event, index) => html`<tr key=${index}>
          <td class="mono nowrap">${clock(event.at, true)}</td><td class="num">${duration(event.at - start)}</td>
          <td>${event.kind.replaceAll("_", " ")}</td><td class="muted small">${about(event.detail)}</td>
        </tr>`,
      )}</tbody>
    </table></div>
  </section>`;
}
