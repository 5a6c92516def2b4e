// Files that a job made, and how far a running job is.

import { html } from "./vendor/htm-preact.js";
import { get } from "./api.js";
import { count } from "./format.js";
import { ErrorNote, useLoad } from "./ui.js";

// As the server shows them in a page. It sends any other type to be saved.
const PICTURE = /^image\/(png|jpeg|webp|gif|avif|bmp)$/;
const MOVING = /^(audio|video)\//;

// The files of a job, as its output lists them. A task's own output may have a field of this name.
export function filesOf(job) {
  const listed = job?.output?.files;
  return Array.isArray(listed) ? listed.filter((file, n) => file?.url === `/v1/jobs/${job.id}/files/${n}`) : [];
}

export function Files({ job }) {
  return html`<ul class="files" aria-label="Files">
    ${filesOf(job).map((file) => html`<${File} key=${file.id} file=${file} />`)}
  </ul>`;
}

function File({ file }) {
  const { data, error } = useLoad((signal) => get(`${file.url.slice("/v1/".length)}/link`, { signal }), [file.url]);
  const facts = [
    file.media_type,
    file.width === undefined ? null : `${file.width} × ${file.height}`,
    file.seconds === undefined ? null : `${file.seconds.toFixed(1)} s`,
    file.bytes < 1000 ? `${file.bytes} bytes` : `${count(file.bytes / 1000)} kB`,
  ];
  // The link needs no key, which neither a picture nor a player could send. It is of the server of this page.
  const url = data === null ? null : new URL(data.url.slice(1), document.baseURI).href;
  return html`<li>
    <${ErrorNote} error=${error} />
    ${url !== null && html`<${Shown} file=${file} url=${url} />`}
    <div class="small muted">
      ${url === null ? file.name : html`<a href=${url} download=${file.name}>${file.name}</a>`} ${facts.filter(Boolean).join(", ")}
    </div>
  </li>`;
}

function Shown({ file, url }) {
  if (PICTURE.test(file.media_type)) return html`<img src=${url} alt=${file.name} width=${file.width} height=${file.height} />`;
  const kind = MOVING.exec(file.media_type)?.[1];
  if (kind === "audio") return html`<audio controls preload="metadata" src=${url} aria-label=${file.name}></audio>`;
  if (kind === "video") return html`<video controls preload="metadata" src=${url} aria-label=${file.name}></video>`;
  return null;
}

// `progress`: {done, total, message}, null if the task has told nothing.
export function Progress({ progress }) {
  if (progress == null) return null;
  const { done, total, message } = progress;
  return html`<div class="progress">
    <progress max=${Math.max(total, 1e-9)} value=${done} aria-label="Progress"></progress>
    <span class="small muted">${count(done)} of ${count(total)}${message === "" ? "" : `: ${message}`}</span>
  </div>`;
}
