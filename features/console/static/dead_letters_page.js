// Dead letters: jobs that were given up, and their replay as new jobs.

import { html, useState } from "./vendor/htm-preact.js";
import { get, post } from "./api.js";
import { ago, moment, shortId } from "./format.js";
import { Act, Heading, ListCard, usePages } from "./ui.js";

const CODES = { "": "any", poison: "poison", max_attempts_exceeded: "attempts ran out" };

export default function DeadLettersPage() {
  const [code, setCode] = useState("");
  const list = usePages((after, signal) => {
    const query = new URLSearchParams({ limit: 25 });
    if (code !== "") query.set("code", code);
    if (after !== null) query.set("after", after);
    return get(`dead_letters?${query}`, { signal });
  }, [code]);
  const replayAll = async () => {
    const { data, has_more: more } = await post("dead_letters/replay", code === "" ? {} : { code });
    list.reload();
    return `${data.length} dead letters are replayed${more ? ", and there are more" : ""}`;
  };
  return html`<div class="head">
      <${Heading}>Dead letters<//>
      <span class="grow"></span>
      <label class="row small muted">Reason
        <select value=${code} onChange=${(event) => setCode(event.target.value)}>
          ${Object.entries(CODES).map(([one, name]) => html`<option key=${one} value=${one}>${name}</option>`)}
        </select>
      </label>
      <${Act} action=${replayAll} confirm="Replay every dead letter of this reason that was not replayed yet?">Replay all<//>
    </div>
    <${ListCard}
      list=${list} label="Dead letters" empty="No dead letter. That is how it should be."
      head=${html`<th>Job</th><th>Reason</th><th class="opt">Queue</th><th class="num opt">Attempts</th><th class="num opt">Lost workers</th>
        <th>Given up</th><th><span class="hidden">Actions</span></th>`}
      row=${(letter) => html`<${Row} key=${letter.id} letter=${letter} reload=${list.reload} />`}
    />`;
}

function Row({ letter, reload }) {
  const replay = async () => {
    const { job_id: made } = await post(`dead_letters/${letter.id}/replay`);
    reload();
    return `Replayed as ${shortId(made)}`;
  };
  return html`<tr>
    <td><a class="mono" href=${`#/job/${letter.id}`}>${shortId(letter.id)}</a></td>
    <td><span class="badge bad">${CODES[letter.code] ?? letter.code}</span><div class="sub">${letter.message}</div></td>
    <td class="opt">${letter.queue}</td>
    <td class="num opt">${letter.attempt}</td>
    <td class="num opt">${letter.crashes}</td>
    <td class="nowrap" title=${moment(letter.created_at)}>${ago(letter.created_at)}</td>
    <td class="actions">
      ${letter.replayed_as !== null
        ? html`<a class="small" href=${`#/job/${letter.replayed_as}`}>replayed as ${shortId(letter.replayed_as)}</a>`
        : html`<${Act} kind="small" action=${replay}>Replay<//>`}
    </td>
  </tr>`;
}
