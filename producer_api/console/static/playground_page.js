// Playground: one request to one model, or to two versions side by side, with the speed of each answer.

import { html, useRef, useState } from "./vendor/htm-preact.js";
import { get, post, readEvents } from "./api.js";
import { count, milliseconds } from "./format.js";
import { PromptFields, readTemplate } from "./prompt_form.js";
import { SchemaFields, readFields, samplingFields } from "./schema_form.js";
import { ErrorNote, Heading, useLoad } from "./ui.js";

const EMPTY = { text: "", status: "", job: null, firstMs: null, error: null };

export default function PlaygroundPage({ query }) {
  const models = useLoad((signal) => get("models", { signal }), []);
  const fields = useLoad(samplingFields, []);
  const names = (models.data?.data ?? []).filter((model) => model.task === "generate").map((model) => model.id);
  const [chosen, setChosen] = useState(null);
  const [answers, setAnswers] = useState([]);
  const running = useRef(null);
  const model = chosen ?? query.get("model") ?? names[0];
  const about = useLoad((signal) => (model === undefined ? Promise.resolve(null) : get(`models/${model}`, { signal })), [model]);
  const isBusy = answers.some((answer) => answer.status === "running" || answer.status === "queued");

  const submit = async (event) => {
    event.preventDefault();
    const form = event.currentTarget;
    const wanted = [model, form.elements.second.value].filter((name) => name !== "");
    let body;
    try {
      body = bodyOf(form, fields.data ?? []);
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
  const stop = () => answers.forEach((answer) => answer.job && post(`jobs/${answer.job.id}/cancel`).catch(() => undefined));

  return html`<div class="head"><${Heading}>Playground<//></div>
    <${ErrorNote} error=${models.error} />
    <div class="play">
      <form class="card" onSubmit=${submit} aria-label="Request"><div class="body stack">
        <div class="row">
          <label class="field grow">Model
            <select name="first" onChange=${(event) => setChosen(event.target.value)}>
              ${names.map((name) => html`<option key=${name} value=${name} selected=${name === model}>${name}</option>`)}
            </select>
          </label>
          <label class="field grow">Compare with
            <select name="second">
              <option value="">nothing</option>
              ${names.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
            </select>
          </label>
        </div>
        <${PromptFields} />
        <label class="field">System message <textarea name="system" class="short" placeholder="none"></textarea></label>
        <label class="field">Message
          <textarea name="message" placeholder="Name three rivers." onKeyDown=${sendOnEnter}></textarea>
        </label>
        <label class="row small"><input type="checkbox" name="raw" /> raw prompt, without the chat template</label>
        <div class="fields"><${SchemaFields} fields=${(fields.data ?? []).filter((one) => one.isFirst)} defaults=${about.data?.sampling} /></div>
        <details>
          <summary class="small muted">More parameters</summary>
          <div class="fields"><${SchemaFields} fields=${(fields.data ?? []).filter((one) => !one.isFirst)} defaults=${about.data?.sampling} /></div>
        </details>
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
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.currentTarget.form.requestSubmit();
}

function bodyOf(form, fields) {
  const { system, message, raw } = form.elements;
  const template = readTemplate(form);
  if (template === null && message.value === "") throw new Error("Write a message, or choose a prompt template.");
  const messages = template !== null && message.value === "" ? [] : [{ role: "user", content: message.value }];
  if (system.value.trim() !== "") messages.unshift({ role: "system", content: system.value });
  const input = raw.checked ? { prompt: message.value } : messages.length > 0 ? { messages } : {};
  if (template !== null) input.template = template;
  return { input, sampling: readFields(form, fields), service_class: "interactive", metadata: { from: "console" } };
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
      } else if (name !== "job.queued") change({ job: data, status: data.status, text: data.output?.text ?? text });
    }, { signal });
  } catch (error) {
    if (!signal.aborted) change({ error, status: "failed" });
  }
}

function Answer({ answer }) {
  const { job, text, status, firstMs, error } = answer;
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
