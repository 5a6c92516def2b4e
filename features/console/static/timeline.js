// A job's timeline as bars: one line for each attempt, or for each step, and one for its webhooks. What was not recorded
// is not drawn.

import { html } from "./vendor/htm-preact.js";
import { clock, duration } from "./format.js";

// Return the lines: [{name, href, parts: [{kind, from, to, isOpen, about}]}]. `now` ends what still goes on. Unix seconds.
export function lanes(job, timeline, deliveries, now) {
  const accepted = timeline.events[0]?.at ?? job.created_at;
  const found = job.steps === null ? attempts(job, timeline, accepted, now) : steps(job, timeline, accepted, now);
  if (deliveries.length > 0) found.push({ name: "Webhooks", parts: deliveries.flatMap(hooks) });
  return found;
}

function attempts(job, timeline, accepted, now) {
  const end = endOf(timeline);
  const found = timeline.attempts.map((attempt, index) => {
    const waitedFrom = index === 0 ? accepted : timeline.attempts[index - 1].ended_at ?? attempt.started_at;
    const parts = [part("wait", "waited", waitedFrom, attempt.started_at)];
    return { name: `Attempt ${index + 1}`, parts: [...parts, ...computed(job, attempt, accepted, now)] };
  });
  const last = timeline.attempts[timeline.attempts.length - 1];
  if (last === undefined || (last.ended_at !== null && end === null)) {
    const from = last === undefined ? accepted : last.ended_at;
    found.push({ name: "Waiting", parts: [{ ...part("wait", "waits", from, end ?? now), isOpen: end === null }] });
  }
  return found;
}

// A step waits from the moment when those that it needs have ended; before that its line is empty.
function steps(job, timeline, accepted, now) {
  const of = (kind, name) => timeline.events.filter((event) => event.kind === kind && event.detail.step === name);
  const ended = (name) => of("step_finished", name)[0] ?? null;
  const end = endOf(timeline);
  const names = new Set(job.steps.map((step) => step.name));
  return job.steps.map((step) => {
    const line = { name: step.name, href: `#/job/${step.job_id}`, parts: [] };
    // A step may also need an approval, whose wait is drawn in its own colour.
    const needed = step.needs.filter((name) => names.has(name)).map(ended);
    if (needed.some((one) => one === null || one.detail.state !== "succeeded")) return line;
    const asked = of("approval_requested", step.name)[0] ?? null;
    const answered = of("approval_decided", step.name)[0] ?? null;
    const ready = Math.max(accepted, ...needed.map((one) => one.at), answered?.at ?? 0);
    const starts = of("step_started", step.name).map((event) => event.at);
    const last = ended(step.name);
    const to = last?.at ?? end ?? now;
    const isOpen = last === null && end === null;
    if (asked !== null) line.parts.push({ ...part("approval-part", "waited for an approval", asked.at, answered?.at ?? to), isOpen: isOpen && answered === null });
    if (asked === null || answered !== null) line.parts.push(part("wait", "waited", ready, starts[0] ?? to));
    starts.forEach((from, index) => {
      if (index + 1 < starts.length) line.parts.push(part("given-part", "ran, and began again after", from, starts[index + 1]));
      else line.parts.push({ ...part(last === null || last.detail.state === "succeeded" ? "step-part" : "step-bad", "ran", from, to), isOpen });
    });
    return line;
  });
}

function endOf(timeline) {
  const last = timeline.events[timeline.events.length - 1];
  return ["succeeded", "failed", "cancelled", "expired"].includes(last?.kind) ? last.at : null;
}

function part(kind, name, from, to) {
  return { kind, from, to, isOpen: false, about: `${name} ${duration(to - from)}` };
}

// The time of the first token is known once the attempt has ended. Without it only the whole is drawn.
function computed(job, attempt, accepted, now) {
  const to = attempt.ended_at ?? now;
  const isOpen = attempt.ended_at === null;
  const first = firstToken(job, attempt, accepted, to);
  const [kind, name] = ENDS[attempt.outcome] ?? ["decode-part", "decoded"];
  if (first !== null) return [part("prefill-part", "to the first token", attempt.started_at, first), part(kind, name, first, to)];
  if (attempt.outcome in ENDS) return [part(kind, name, attempt.started_at, to)];
  return [{ ...part("compute-part", isOpen ? "runs for" : "ran", attempt.started_at, to), isOpen }];
}

const ENDS = { released: ["given-part", "given back after"], lease_expired: ["lost-part", "lost after"] };

// A lost attempt could not tell its first token: it is the job's if that lies inside.
function firstToken(job, attempt, accepted, to) {
  if (attempt.first_token_ms !== null) return attempt.started_at + attempt.first_token_ms / 1000;
  const first = job.usage?.first_token_ms == null ? null : accepted + job.usage.first_token_ms / 1000;
  return first !== null && first >= attempt.started_at && first <= to ? first : null;
}

function hooks(delivery) {
  return (delivery.tries ?? []).map((attempt) => ({
    kind: attempt.status !== null && attempt.status < 300 ? "hook" : "hook bad",
    from: attempt.at,
    to: attempt.at,
    isOpen: false,
    about: `${delivery.type} to ${delivery.url}: ${attempt.status ?? attempt.error ?? "no answer"}`,
  }));
}

const LEGEND = [
  ["wait", "waited"], ["approval-part", "waited for an approval"], ["prefill-part", "prefill, to the first token"], ["decode-part", "decode"],
  ["compute-part", "computed, first token not recorded"], ["step-part", "the step ran"], ["step-bad", "the step ran, and did not succeed"], ["given-part", "ran, and was given back or began again"], ["lost-part", "ran, and was lost with its worker"],
];

export function Timeline({ lines }) {
  const parts = lines.flatMap((line) => line.parts);
  if (parts.length === 0) return html`<p class="muted">Nothing has run.</p>`;
  const start = Math.min(...parts.map((one) => one.from));
  const end = Math.max(...parts.map((one) => one.to), start + 0.001);
  const place = (at) => `${(100 * (at - start)) / (end - start)}%`;
  const kinds = new Set(parts.map((one) => one.kind));
  return html`<div class="timeline">
    ${lines.map(
      (line) => html`<div class="lane" key=${line.name}>
        <span title=${line.name}>${line.href === undefined ? line.name : html`<a href=${line.href}>${line.name}</a>`}</span>
        <div class="bar" role="img" aria-label=${line.parts.map((one) => one.about).join(", ") || "not begun"}>
          ${line.parts.map((one, index) => {
            const style = { left: place(one.from) };
            if (!one.kind.startsWith("hook")) style.width = `${(100 * (one.to - one.from)) / (end - start)}%`;
            return html`<i key=${index} class=${`${one.kind} ${one.isOpen ? "open" : ""}`} style=${style} title=${one.about}></i>`;
          })}
        </div>
      </div>`,
    )}
    <div class="axis"><span>${clock(start, true)}</span><span>${duration(end - start)}</span><span>${clock(end, true)}</span></div>
    <div class="row">
      ${LEGEND.filter(([kind]) => kinds.has(kind)).map(([kind, name]) => html`<span key=${kind} class=${`key ${kind}`}>${name}</span>`)}
    </div>
  </div>`;
}
