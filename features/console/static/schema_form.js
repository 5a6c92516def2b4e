// The fields of sampling, read from the API's own description, so that a new parameter needs no change here.

import { html } from "./vendor/htm-preact.js";
import { BASE } from "./api.js";

const KINDS = ["number", "integer", "boolean"];
// Those that the playground has a place for.
const FIRST = ["max_tokens", "temperature", "top_p", "seed"];

// Return [{name, kind, least, most, about}]. Without the description (`docs` is not an open page): none.
export async function samplingFields(signal) {
  const response = await fetch(new URL("../openapi.json", BASE), { signal });
  if (!response.ok) return [];
  const { components } = await response.json();
  return Object.entries(components.schemas.Sampling.properties)
    .map(([name, schema]) => field(name, schema))
    .filter((one) => KINDS.includes(one.kind))
    .sort((a, b) => rank(a.name) - rank(b.name));
}

const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);

function field(name, schema) {
  const one = schema.anyOf?.find((option) => option.type !== "null") ?? schema;
  const least = one.minimum ?? one.exclusiveMinimum ?? null;
  const most = one.maximum ?? one.exclusiveMaximum ?? null;
  return { name, kind: one.type, least, most, about: schema.description ?? "", isFirst: FIRST.includes(name) };
}

export function SchemaFields({ fields, defaults }) {
  return html`${fields.map((one) => html`<${SchemaField} key=${one.name} field=${one} standard=${defaults?.[one.name]} />`)}`;
}

function SchemaField({ field: { name, kind, least, most, about }, standard }) {
  if (kind === "boolean") {
    return html`<label class="row small" title=${about}><input type="checkbox" name=${name} /> ${name}</label>`;
  }
  return html`<label class="field" title=${about}>${name}
    <input
      type="number" name=${name} min=${least} max=${most > 1e15 ? null : most} step=${kind === "integer" ? 1 : "any"}
      placeholder=${standard ?? (name === "max_tokens" ? "1,024 at most" : "default")}
    />
  </label>`;
}

// Return the fields that were filled in, as the API takes them.
export function readFields(form, fields) {
  const found = {};
  for (const { name, kind } of fields) {
    const input = form.elements.namedItem(name);
    if (kind === "boolean" && input.checked) found[name] = true;
    if (kind !== "boolean" && input.value !== "") found[name] = Number(input.value);
  }
  return found;
}
