// Prints the JSON schemas of the zod schemas that Node packages export, a line of JSON each. Runs in a client's folder.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.cwd()}/`);
const { z } = await import(pathToFileURL(require.resolve("zod")).href);
const seen = new Set();
const lines = [];

function* schemasIn(name, value, depth) {
  if (value === null || !["object", "function"].includes(typeof value) || seen.has(value)) return;
  seen.add(value);
  if (value._zod) yield [name, value];
  else if (depth > 0)
    for (const [key, inner] of Object.entries(value)) yield* schemasIn(`${name}.${key}`, inner, depth - 1);
}

for (const path of process.argv.slice(2)) {
  let module;
  try {
    module = await import(pathToFileURL(require.resolve(path)).href);
  } catch (error) {
    console.error(`${path}: ${error.message}`);
    continue;
  }
  for (const [name, found] of schemasIn(path, module, 3)) {
    for (const io of ["output", "input"]) {
      try {
        const schema = z.toJSONSchema(found, { io, unrepresentable: "any" });
        lines.push(JSON.stringify({ package: path, name: `${name} (${io})`, schema }));
      } catch {
        // What JSON Schema cannot say is sent by no client.
      }
    }
  }
}
// Packages may have left timers behind; what is written to a pipe must be out before the end.
process.stdout.write(`${lines.join("\n")}\n`, () => process.exit(0));
