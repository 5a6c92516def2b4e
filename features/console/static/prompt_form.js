// The choice of a prompt template, and a field for each of its variables, as its schema declares them.

import { html, useState } from "./vendor/htm-preact.js";
import { get } from "./api.js";
import { useLoad } from "./ui.js";

const PREFIX = "variable:";

// Return [{name, isText, standard, about}] of a template's variables: names of texts, or a JSON schema.
export function variablesOf(template) {
  const declared = template.variables ?? [];
  if (Array.isArray(declared)) return declared.map((name) => ({ name, isText: true, standard: null, about: "" }));
  return Object.entries(declared.properties ?? {}).map(([name, schema]) => ({
    name,
    isText: schema.type === "string",
    standard: schema.default === undefined ? null : JSON.stringify(schema.default),
    about: schema.description ?? "",
  }));
}

export function PromptFields() {
  const prompts = useLoad((signal) => get("prompts?limit=100", { signal }), []);
  const [chosen, setChosen] = useState("");
  const all = prompts.data?.data ?? [];
  const template = all.find((one) => `${one.id}@${one.version}` === chosen);
  if (all.length === 0) return null;
  return html`<label class="field">Prompt template
      <select name="template" onChange=${(event) => setChosen(event.target.value)}>
        <option value="">none</option>
        ${all.map((one) => html`<option key=${one.id} value=${`${one.id}@${one.version}`}>${`${one.name || one.id}@${one.version}`}</option>`)}
      </select>
    </label>
    ${template !== undefined && variablesOf(template).map((one) => html`<label class="field" key=${one.name} title=${one.about}>
      ${one.name}${one.isText ? "" : " (JSON)"}
      <textarea class="short" name=${PREFIX + one.name} data-kind=${one.isText ? "text" : "json"} placeholder=${one.standard ?? ""}></textarea>
    </label>`)}`;
}

// Return the template that was chosen with its values, null if none was. Throws SyntaxError for a value that is no JSON.
export function readTemplate(form) {
  const id = form.elements.template?.value ?? "";
  if (id === "") return null;
  const variables = {};
  for (const input of form.elements) {
    if (!input.name.startsWith(PREFIX) || (input.value === "" && input.placeholder !== "")) continue;
    const name = input.name.slice(PREFIX.length);
    variables[name] = input.dataset.kind === "text" ? input.value : JSON.parse(input.value);
  }
  return { id, variables };
}
