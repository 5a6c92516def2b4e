// Rollouts: the share of each candidate, what the judge found, and the buttons that change a rollout.

import { html, useState } from "./vendor/htm-preact.js";
import { get, post, text } from "./api.js";
import { ago, moment, shortId } from "./format.js";
import { Act, ListCard, tell, useLoad } from "./ui.js";

const TONES = { running: "now", paused: "warn", promoted: "good", rolled_back: "bad", aborted: "" };
const DECISIONS = { good: "good", bad: "bad", undecided: "" };

// Nothing is shown to a key without the scope, and where there was no rollout yet.
export function Rollouts({ reloadModels }) {
  const list = useLoad((signal) => get("rollouts", { signal }), []);
  if (list.error?.status === 403 || list.data?.data.length === 0) return null;
  const reload = () => {
    list.reload();
    reloadModels();
  };
  return html`<h2>Rollouts</h2>
    <${ListCard}
      list=${list} label="Rollouts" empty="No rollout."
      head=${html`<th>Alias</th><th>State</th><th class="num">Share</th><th class="opt">Step</th><th>Checks</th>
        <th class="opt">Started</th><th><span class="hidden">Actions</span></th>`}
      row=${(rollout) => html`<${Row} key=${rollout.id} rollout=${rollout} reload=${reload} />`}
    />`;
}

function Row({ rollout, reload }) {
  const [plot, setPlot] = useState(null);
  const isActive = rollout.state === "running" || rollout.state === "paused";
  const path = `rollouts/${rollout.id}`;
  // The list has no checks. They are of interest while the judge looks; an ended rollout has its reason.
  const judged = useLoad((signal) => (isActive ? get(path, { signal }) : Promise.resolve(null)), [rollout]);
  const change = (verb, done) => async () => {
    await post(`${path}/${verb}`, undefined, { ifMatch: rollout.revision });
    reload();
    return done;
  };
  const draw = async () => {
    try {
      setPlot(plot === null ? await text(`${path}/plot`) : null);
    } catch (error) {
      tell(error.message);
    }
  };
  const name = `${rollout.model}@${rollout.alias}`;
  return html`<tr>
    <td>
      <strong>${name}</strong>
      <div class="sub">version ${rollout.stable_version} → ${rollout.candidate_version} · <span class="mono">${shortId(rollout.id)}</span></div>
    </td>
    <td>
      <span class=${`badge ${TONES[rollout.state]}`}>${rollout.state.replaceAll("_", " ")}</span>
      ${rollout.reason === null ? null : html`<div class="small muted">${rollout.reason}</div>`}
    </td>
    <td class="num">${rollout.percent} %</td>
    <td class="opt">${rollout.current_step + 1} of ${rollout.steps.length}</td>
    <td>
      <div class="row small">${judged.data?.checks.map((check) => html`<span
        key=${check.name} class=${`badge ${DECISIONS[check.decision]}`} title=${check.text}>${check.name.replaceAll("_", " ")}</span>`)}</div>
      ${plot === null ? null : html`<img alt=${`Evidence against version ${rollout.candidate_version} over time`} src=${`data:image/svg+xml,${encodeURIComponent(plot)}`} />`}
    </td>
    <td class="opt nowrap" title=${moment(rollout.started_at)}>${ago(rollout.started_at)}</td>
    <td class="actions">
      <button type="button" class="small" onClick=${draw}>${plot === null ? "Evidence" : "Hide"}</button>
      ${isActive && rollout.state === "running" && html`<${Act} kind="small" action=${change("pause", "Paused")}>Pause<//>`}
      ${isActive && rollout.state === "paused" && html`<${Act} kind="small" action=${change("resume", "Resumed")}>Resume<//>`}
      ${isActive && html`<${Act} kind="small" action=${change("promote", "Promoted")} confirm=${`Let ${name} name version ${rollout.candidate_version} now?`}>Promote<//>`}
      ${isActive && html`<${Act} kind="small" action=${change("abort", "Aborted")} confirm=${`Send all jobs of ${name} to version ${rollout.stable_version}?`}>Abort<//>`}
    </td>
  </tr>`;
}
