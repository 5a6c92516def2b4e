// Playground: one request of any task to one model, or to two side by side, with the speed of each answer.

import { html, useRef, useState } from "./vendor/htm-preact.js";
import { get, post, readEvents } from "./api.js";
import { Files, Progress, filesOf } from "./files.js";
import { count, milliseconds, readable } from "./format.js";
import { PromptFields, readTemplate } from "./prompt_form.js";
import { SchemaFields, readFields, samplingFields } from "./schema_form.js";
import { TaskFields, readTask, taskForms } from "./task_form.js";
import { ErrorNote, Heading, useLoad } from "./ui.js";

const ALWAYS = { service_class: "interactive", metadata: { from: "console" } };
const EMPTY = { text: "", status: "", job: null, firstMs: null, error: null, progress: null };

export default function PlaygroundPage({ query }) {
  const models = useLoad((signal) => get("models", { signal }), []);
  const fields = useLoad(samplingFields, []);
  const forms = useLoad(taskForms, []);
  const names = (models.data?.data ?? []).map((model) => model.id);
  const [chosen, setChosen] = useState(null);
  const [chosenTask, setChosenTask] = useState(null);
  const [answers, setAnswers] = useState([]);
  const running = useRef(null);
  const model = chosen ?? query.get("model") ?? names[0];
  const about = useLoad((signal) => (model === undefined ? Promise.resolve(null) : get(`models/${model}`, { signal })), [model]);
  // A model may serve more tasks than its own: the server says which.
  const own = models.data?.data.find((one) => one.id === model)?.task;
  const task = chosenTask ?? own ?? "generate";
  const tasks = [...new Set([...Object.keys(forms.data ?? {}), task])];
  const isBusy = answers.some((answer) => answer.status === "running" || answer.status === "queued");

  const submit = async (event) => {
    event.preventDefault();
    const form = event.currentTarget;
    const wanted = [model, form.elements.second.value].filter((name) => name !== "");
    let body;
    try {
      body = task === "generate" ? bodyOf(form, fields.data ?? []) : { task, ...readTask(form), ...ALWAYS };
    } catch (error) {
      setAnswers(wanted.map((name) => ({ ...EMPTY, name, status: "failed", error })));
      return;
    }
    running.current?.abort();
    running.current = new AbortController();
    setAnswers(wanted.map((name) => ({ ...EMPTY, name, status: "queued" })));
    const change = (index) => (changes) => setAnswers((old) => old.map((one, at) => (at === index ? { ...one, ...changes } : one)));
    await Promise.all(wanted.map((name, index) => run({ ...body, model: name }, running.current.signal, change(index))));
  };
  const choose = (name) => {
    setChosen(name);
    setChosenTask(null);
  };
  const stop = () => answers.forEach((answer) => answer.job && post(`jobs/${answer.job.id}/cancel`).catch(() => undefined));

  return html`<div class="head"><${Heading}>Playground<//></div>
    <${ErrorNote} error=${models.error} />
    <div class="play">
      <form class="card" onSubmit=${submit} onKeyDown=${sendOnEnter} aria-label="Request"><div class="body stack">
        <div class="fields">
          <label class="field grow">Model
            <select name="first" onChange=${(event) => choose(event.target.value)}>
              ${names.map((name) => html`<option key=${name} value=${name} selected=${name === model}>${name}</option>`)}
            </select>
          </label>
          <label class="field grow">Task
            <select name="task" onChange=${(event) => setChosenTask(event.target.value)}>
              ${tasks.map((name) => html`<option key=${name} value=${name} selected=${name === task}>${name}</option>`)}
            </select>
          </label>
          <label class="field grow">Compare with
            <select name="second">
              <option value="">nothing</option>
              ${names.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
            </select>
          </label>
        </div>
        ${task === "generate"
          ? html`<${GenerateFields} fields=${fields.data ?? []} defaults=${about.data?.sampling} />`
          : html`<${TaskFields} task=${task} fields=${forms.data?.[task]} />`}
        <div class="row">
          <button class="primary" disabled=${names.length === 0}>Run</button>
          <button type="button" disabled=${!isBusy} onClick=${stop}>Stop</button>
          <span class="small muted">Ctrl + Enter runs it</span>
        </div>
      </div></form>
      <div class="answers">
        ${answers.length === 0
          ? html`<section class="card"><p class="empty">The answer appears here, as it is generated.</p></section>`
          : answers.map((answer, index) => html`<${Answer} key=${index} answer=${answer} />`)}
      </div>
    </div>`;
}

function sendOnEnter(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.currentTarget.requestSubmit();
}

function GenerateFields({ fields, defaults }) {
  return html`<${PromptFields} />
    <label class="field">System message <textarea name="system" class="short" placeholder="none"></textarea></label>
    <label class="field">Message <textarea name="message" placeholder="Name three rivers."></textarea></label>
    <label class="row small"><input type="checkbox" name="raw" /> raw prompt, without the chat template</label>
    <div class="fields"><${SchemaFields} fields=${fields.filter((one) => one.isFirst)} defaults=${defaults} /></div>
    <details>
      <summary class="small muted">More parameters</summary>
      <div class="fields"><${SchemaFields} fields=${fields.filter((one) => !one.isFirst)} defaults=${defaults} /></div>
    </details>`;
}

function bodyOf(form, fields) {
  const { system, message, raw } = form.elements;
  const template = readTemplate(form);
  if (template === null && message.value === "") throw new Error("Write a message, or choose a prompt template.");
  const messages = template !== null && message.value === "" ? [] : [{ role: "user", content: message.value }];
  if (system.value.trim() !== "") messages.unshift({ role: "system", content: system.value });
  const input = raw.checked ? { prompt: message.value } : messages.length > 0 ? { messages } : {};
  if (template !== null) input.template = template;
  return { input, sampling: readFields(form, fields), ...ALWAYS };
}

async function run(body, signal, change) {
  const began = performance.now();
  let text = "";
  try {
    const job = await post("jobs", body, { signal });
    change({ job });
    await readEvents("GET", `jobs/${job.id}/events`, ({ name, data }) => {
      if (name === "job.started") change({ status: "running" });
      else if (name === "job.delta") {
        if (text === "") change({ firstMs: performance.now() - began });
        text += data.text;
        change({ text });
      } else if (name === "job.restarted") {
        text = data.text;
        change({ text });
      } else if (name === "job.progress") change({ progress: data });
      else if (name !== "job.queued") change({ job: data, progress: null, status: data.status, text: shown(data.output) ?? text });
    }, { signal });
  } catch (error) {
    if (!signal.aborted) change({ error, status: "failed" });
  }
}

// The text of an output, or its fields.
function shown(output) {
  if (output === null || output === undefined) return null;
  return output.text ?? readable(output);
}

function Answer({ answer }) {
  const { job, text, status, firstMs, error, progress } = answer;
  const usage = job?.usage;
  const decodeMs = usage?.first_token_ms == null ? null : usage.queue_ms + usage.compute_ms - usage.first_token_ms;
  const speed = decodeMs > 0 && usage.output_tokens > 1 ? (1000 * (usage.output_tokens - 1)) / decodeMs : null;
  return html`<section class="card" aria-label=${`Answer of ${answer.name}`} aria-busy=${status === "running"}>
    <div class="title">
      <h2>${job === null ? answer.name : `${job.model}@${job.model_version}`}</h2>
      <span class="grow"></span>
      ${job !== null && html`<a class="small" href=${`#/job/${job.id}`}>job</a>`}
      <span class="small muted" role="status">${status}</span>
    </div>
    <div class="body">
      <${ErrorNote} error=${error ?? job?.error} />
      <${Progress} progress=${progress} />
      ${filesOf(job).length > 0 && html`<${Files} job=${job} />`}
      <pre class="text" tabindex="0">${text}</pre>
      <div class="metrics">
        <span>first token <b>${milliseconds(firstMs)}</b> here, <b>${milliseconds(usage?.first_token_ms)}</b> at the server</span>
        <span><b>${speed === null ? "–" : speed.toFixed(1)}</b> tokens/s</span>
        <span><b>${count(usage?.input_tokens)}</b> in, <b>${count(usage?.output_tokens)}</b> out</span>
        <span>cost <b>${usage == null ? "–" : usage.cost === null ? "no price" : usage.cost.toPrecision(3)}</b></span>
        ${job?.output?.finish_reason && html`<span>ended by <b>${job.output.finish_reason}</b></span>`}
      </div>
    </div>
  </section>`;
}
