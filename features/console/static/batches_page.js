// Batches: progress and outcome, cancel, and the files of their results.

import { html } from "./vendor/htm-preact.js";
import { download, get, post } from "./api.js";
import { ago, count, moment, shortId } from "./format.js";
import { Act, Heading, ListCard, State, usePages } from "./ui.js";

const OPEN = ["validating", "in_progress", "finalizing"];
const MOST_ERRORS = 5;

export default function BatchesPage() {
  const list = usePages((after, signal) => get(`batches?limit=20${after === null ? "" : `&after=${after}`}`, { signal }), []);
  return html`<div class="head">
      <${Heading}>Batches<//>
      <span class="grow"></span>
      <button type="button" onClick=${list.reload}>Refresh</button>
    </div>
    <${ListCard}
      list=${list} label="Batches" empty="No batch yet. One is made by POST /v1/batches from an uploaded file."
      head=${html`<th>Batch</th><th>State</th><th>Lines</th><th class="num opt">Failed</th><th class="opt">URL</th>
        <th class="opt">Created</th><th><span class="hidden">Actions</span></th>`}
      row=${(batch) => html`<${Row} key=${batch.id} batch=${batch} reload=${list.reload} />`}
    />`;
}

function Row({ batch, reload }) {
  const { total, completed, failed } = batch.request_counts;
  const done = total > 0 ? (100 * (completed + failed)) / total : 0;
  const errors = batch.errors?.data ?? [];
  const cancel = async () => {
    await post(`batches/${batch.id}/cancel`);
    reload();
  };
  return html`<tr>
    <td><span class="mono" title=${batch.id}>${shortId(batch.id)}</span><div class="sub">${batch.model}</div></td>
    <td><${State} of=${batch.status} /></td>
    <td class="split-wide">
      <span class="split" role="progressbar" aria-label="Lines done" aria-valuemin="0" aria-valuemax=${total} aria-valuenow=${completed + failed}>
        <i class="c1" style=${{ width: `${done}%`, minWidth: 0 }}></i>
      </span>
      <span class="small muted">${count(completed + failed)} of ${count(total)}</span>
    </td>
    <td class="num opt">${count(failed)}</td>
    <td class="opt mono">${batch.endpoint}</td>
    <td class="opt nowrap" title=${moment(batch.created_at)}>${ago(batch.created_at)}</td>
    <td class="actions">
      ${batch.output_file_id && html`<${Act} kind="small" action=${() => download(`files/${batch.output_file_id}/content`, `${batch.id}.jsonl`)}>Results<//>`}
      ${batch.error_file_id && html`<${Act} kind="small" action=${() => download(`files/${batch.error_file_id}/content`, `${batch.id}-errors.jsonl`)}>Errors<//>`}
      ${OPEN.includes(batch.status) && html`<${Act} kind="small danger" action=${cancel} confirm="Cancel this batch?" done="The batch is being cancelled">Cancel<//>`}
    </td>
  </tr>
  ${errors.length > 0 && html`<tr class="more"><td colspan="7"><div class="note bad small">
    ${errors.slice(0, MOST_ERRORS).map((error, index) => html`<div key=${index}>
      <strong>${error.code}</strong>${error.line === null ? "" : `, line ${error.line}`}: ${error.message}
    </div>`)}
    ${errors.length > MOST_ERRORS && html`<div>and ${count(errors.length - MOST_ERRORS)} more</div>`}
  </div></td></tr>`}`;
}
