// Models: each version with its aliases, its engine, its workers, and how fast it was in the last minute.

import { html } from "./vendor/htm-preact.js";
import { get } from "./api.js";
import { count, milliseconds, moment } from "./format.js";
import { outlookOf } from "./hosts.js";
import { useLive } from "./live_store.js";
import { QualityLine } from "./quality.js";
import { Rollouts } from "./rollouts.js";
import { Heading, ListCard, useLoad } from "./ui.js";

export default function ModelsPage() {
  const list = useLoad(load, []);
  const { live, history } = useLive();
  const queues = new Map((live?.queues ?? []).map((queue) => [queue.name, queue]));
  const speeds = new Map((history?.speeds ?? []).map((speed) => [speed.queue, speed]));
  return html`<div class="head">
      <${Heading}>Models<//>
      <span class="grow"></span>
      <button type="button" onClick=${list.reload}>Refresh</button>
    </div>
    <${ListCard}
      list=${list} label="Model versions" empty="No model is registered."
      head=${html`<th>Version</th><th>State</th><th class="opt">Task</th><th class="opt">Engine</th><th class="num opt">Context</th>
        <th class="num">Waiting</th><th class="num">Tokens/s</th><th class="num">First token p50</th><th class="num opt">p95</th>
        <th class="opt">Registered</th>`}
      row=${(model) => html`<${Row} key=${model.id} model=${model} queue=${queues.get(model.id)} speed=${speeds.get(model.id)} />`}
    />
    <${Rollouts} reloadModels=${list.reload} />
    <p class="small muted">Speeds are those of the last minute${live?.share === "own" ? ", of your tenant" : ""}.</p>`;
}

// A list has a model once for each of its names. Here each version is one row, with its state in the registry.
async function load(signal) {
  const [list, versions] = await Promise.all([get("models", { signal }), get("model_versions", { signal })]);
  const known = new Map(versions.data.map((version) => [version.id, version]));
  const models = list.data.filter((model) => model.id === `${model.root}@${model.version}`);
  return { data: models.map((model) => ({ ...model, known: known.get(model.id) })) };
}

function Row({ model, queue, speed }) {
  const aliases = Object.entries(model.aliases).filter(([, version]) => version === model.version).map(([name]) => name);
  return html`<tr>
    <td>
      <strong>${model.id}</strong>
      ${model.known?.template && html`<div class="small muted">with ${templateName(model.known.template)}</div>`}
      <div class="row small">${aliases.map((name) => html`<span class="badge now" key=${name}>${name}</span>`)}</div>
    </td>
    <td><${VersionState} known=${model.known} queue=${queue} /><${QualityLine} known=${model.known} /></td>
    <td class="opt">${model.task}</td>
    <td class="opt">${model.engine}</td>
    <td class="num opt">${count(model.context_length)}</td>
    <td class="num">${count(queue?.queued.jobs)}</td>
    <td class="num">${count(speed?.tokens_per_s)}</td>
    <td class="num">${milliseconds(speed?.first_token_p50_ms)}</td>
    <td class="num opt">${milliseconds(speed?.first_token_p95_ms)}</td>
    <td class="opt nowrap small muted">${moment(model.created)}</td>
  </tr>`;
}

function templateName({ id, name, version }) {
  return `${name || id}@${version}`;
}

function VersionState({ known, queue }) {
  if (known !== undefined && known.state !== "ready") {
    const kind = known.state === "rejected" ? "bad" : "warn";
    return html`<span class=${`badge ${kind}`}>${known.state}</span>
      ${known.state_reason === null ? null : html`<div class="small muted">${known.state_reason}</div>`}`;
  }
  if (queue === undefined) return html`<span class="badge">not known</span>`;
  if (queue.paused_at !== null) return html`<span class="badge warn">paused</span>`;
  if (queue.workers === 0 && queue.host !== null) return outlookOf(queue);
  if (queue.workers === 0) return html`<span class=${`badge ${queue.queued.jobs > 0 ? "bad" : ""}`}>no worker</span>`;
  return html`<span class="badge good">served by ${queue.workers}</span>`;
}
