// A request as a command or a program. The key is left to the environment: a copied text must not carry it.

import { BASE } from "./api.js";

const server = () => new URL("..", BASE).href.replace(/\/$/, "");

export function curl(body) {
  const text = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl -s ${BASE.href}jobs \\
  -H "Authorization: Bearer $HEADRACE_API_KEY" -H 'Content-Type: application/json' \\
  -d '${text}'
`;
}

export function python(body) {
  const fields = Object.entries(body).map(([name, value]) => `        ${name}=${literal(value, 8)},\n`);
  return `import os

from headrace.client import Client

with Client("${server()}", os.environ["HEADRACE_API_KEY"]) as client:
    job = client.submit(
${fields.join("")}    )
    print(client.result(job["id"]))
`;
}

export function node(body) {
  return `const response = await fetch("${BASE.href}jobs", {
  method: "POST",
  headers: {
    Authorization: \`Bearer \${process.env.HEADRACE_API_KEY}\`,
    "Content-Type": "application/json",
    Prefer: "wait=60",
  },
  body: JSON.stringify(${JSON.stringify(body, null, 2).replaceAll("\n", "\n  ")}),
});
console.log(await response.json());
`;
}

// A JSON value as a literal of Python.
function literal(value, indent) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const items = Array.isArray(value)
    ? value.map((one) => literal(one, indent + 4))
    : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one, indent + 4)}`);
  const [open, close] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  const line = open + items.join(", ") + close;
  if (line.length + indent <= 88 && !line.includes("\n")) return line;
  const space = " ".repeat(indent + 4);
  return `${open}\n${items.map((item) => `${space}${item},\n`).join("")}${" ".repeat(indent)}${close}`;
}
