// What the JavaScript programs share: run features in order and print a line of JSON for each.
export const MODEL = "smollm2";

export function check(condition, message) {
  if (!condition) throw new Error(message ?? "not so");
}

export async function main(features) {
  const only = process.argv.slice(2);
  for (const [feature, proof] of Object.entries(features)) {
    if (only.length && !only.some((word) => feature.includes(word))) continue;
    const began = performance.now();
    let error = null;
    try {
      await proof();
    } catch (thrown) {
      error = thrown?.stack ?? String(thrown);
    }
    const took_s = Math.round(performance.now() - began) / 1000;
    console.log(JSON.stringify({ feature, error, took_s }));
  }
  process.exit(0);
}
