// A form for any task, made from the schema of its request in the API's own description, with its example filled in.

import { html } from "./vendor/htm-preact.js";
import { BASE } from "./api.js";

const PLAIN = ["string", "number", "integer", "boolean"];

// Return {task: [{path, kind, isRequired, choices, about, value}]}. Without the description (`docs` is not an open page)
// it has no tasks, and the form is one field for the whole input.
export async function taskForms(signal) {
  const response = await fetch(new URL("../openapi.json", BASE), { signal });
  if (!response.ok) return {};
  const { components, paths } = await response.json();
  const body = paths["/v1/jobs"].post.requestBody.content["application/json"];
  const resolve = (schema) => {
    const one = schema.anyOf?.find((option) => option.type !== "null") ?? schema;
    return one.$ref === undefined ? one : resolve(components.schemas[one.$ref.split("/").at(-1)]);
  };
  const requests = body.schema.oneOf.map(resolve);
  // What every request has is of the job, not of its task.
  const isCommon = (name) => name !== "input" && requests.every((request) => name in request.properties);
  const examples = Object.values(body.examples).map((example) => example.value);
  const forms = requests.map((request) => {
    const { task } = request.properties;
    const name = task.const ?? task.default;
    const example = examples.find((one) => one.task === name) ?? {};
    const own = { ...request, properties: Object.fromEntries(Object.entries(request.properties).filter(([field]) => !isCommon(field) && field !== "input")) };
    return [name, [...fieldsOf(["input"], resolve(request.properties.input), example.input ?? {}, resolve), ...fieldsOf([], own, example, resolve)]];
  });
  return Object.fromEntries(forms);
}

function fieldsOf(place, schema, example, resolve) {
  return Object.entries(schema.properties ?? {}).map(([name, outer]) => {
    const one = resolve(outer);
    const value = example[name];
    return {
      path: [...place, name].join("."),
      kind: PLAIN.includes(one.type) ? one.type : "json",
      choices: one.enum ?? null,
      isRequired: (schema.required ?? []).includes(name),
      about: outer.description ?? one.description ?? "",
      value: value === undefined ? outer.default : value,
      isGiven: value !== undefined,
    };
  });
}

const WHOLE_INPUT = [{ path: "input", kind: "json", choices: null, isRequired: true, about: "the input of the task", isGiven: false }];

export function TaskFields({ task, fields = WHOLE_INPUT }) {
  return html`${fields.map((field) => html`<${TaskField} key=${`${task} ${field.path}`} field=${field} />`)}`;
}

function TaskField({ field: { path, kind, choices, isRequired, about, value, isGiven } }) {
  const attributes = { name: `task:${path}`, "data-path": path, "data-kind": kind, required: isRequired };
  const label = path.replace(/^input\./, "");
  if (kind === "boolean") {
    return html`<label class="row small" title=${about}>
      <input type="checkbox" ...${attributes} required=${false} data-standard=${String(value ?? false)} defaultChecked=${value === true} /> ${label}
    </label>`;
  }
  if (choices !== null) {
    return html`<label class="field" title=${about}>${label}
      <select ...${attributes}>
        ${!isRequired && html`<option value="">default</option>`}
        ${choices.map((one) => html`<option key=${one} value=${one} selected=${isGiven && one === value}>${one}</option>`)}
      </select>
    </label>`;
  }
  const text = isGiven ? (kind === "json" ? JSON.stringify(value) : String(value)) : "";
  const hint = value === undefined || value === null || isGiven ? "" : JSON.stringify(value);
  if (kind === "number" || kind === "integer") {
    return html`<label class="field" title=${about}>${label}
      <input type="number" ...${attributes} step=${kind === "integer" ? 1 : "any"} defaultValue=${text} placeholder=${hint} />
    </label>`;
  }
  return html`<label class="field" title=${about}>${label}${kind === "json" ? " (JSON)" : ""}
    <textarea class=${isRequired ? "" : "short"} ...${attributes} defaultValue=${text} placeholder=${hint}></textarea>
  </label>`;
}

// Return the fields of the request that were filled in. Throws an Error that names a field whose value is no JSON.
export function readTask(form) {
  const found = { input: {} };
  for (const element of form.elements) {
    const { path, kind, standard } = element.dataset;
    if (path === undefined) continue;
    const value = kind === "boolean" ? element.checked : element.value;
    if (kind === "boolean" ? String(value) === standard : value === "") continue;
    put(found, path.split("."), parsed(path, kind, value));
  }
  return found;
}

function parsed(path, kind, value) {
  if (kind === "string" || kind === "boolean") return value;
  try {
    return JSON.parse(value);
  } catch {
    throw new Error(`${path} is no JSON: texts need quotes, and lists brackets.`);
  }
}

function put(body, [first, ...rest], value) {
  if (rest.length === 0) body[first] = value;
  else put((body[first] ??= {}), rest, value);
}
