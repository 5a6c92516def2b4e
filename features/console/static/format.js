// How figures, times and ids are shown. Everything returns a short text.

export const CLASSES = ["interactive", "standard", "batch"];

export function count(value) {
  if (value === null || value === undefined) return "–";
  if (Math.abs(value) < 10_000) return Math.round(value).toLocaleString("en");
  return Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(value);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.00005) return "0 ms";
  if (seconds < 0.0995) return `${(seconds * 1000).toFixed(seconds < 0.0095 ? 1 : 0)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(seconds < 0.995 ? 2 : 1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.floor(seconds / 60)} min ${pad(seconds % 60)} s`;
  if (seconds < 129_600) return `${Math.floor(seconds / 3600)} h ${pad((seconds % 3600) / 60)} min`;
  return `${Math.round(seconds / 86_400)} d`;
}

export const milliseconds = (ms) => (ms === null || ms === undefined ? "–" : duration(ms / 1000));
export const percent = (share) => (share === null || share === undefined ? "–" : `${Math.round(share * 100)} %`);
export const now = () => Date.now() / 1000;
export const ago = (at) => (at === null || at === undefined ? "–" : `${duration(Math.max(0, now() - at))} ago`);

export function clock(at, withMs = false) {
  if (at === null || at === undefined) return "–";
  const date = new Date(at * 1000);
  const time = `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
  return withMs ? `${time}.${String(date.getMilliseconds()).padStart(3, "0")}` : time;
}

export function moment(at) {
  if (at === null || at === undefined) return "–";
  const date = new Date(at * 1000);
  const day = `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`;
  return `${day} ${clock(at)}`;
}

// job_0197f0c2a3b47d518e9a2b6c7d8e9f01 -> job_…7d8e9f01: ids begin with the time, so their ends differ.
export function shortId(id) {
  const cut = id.indexOf("_") + 1;
  return id.length - cut > 12 ? `${id.slice(0, cut)}…${id.slice(-8)}` : id;
}

// host:pid:boot, as the owner of claims
export function workerName(id) {
  const parts = id.split(":");
  return parts.length > 2 ? `${parts[0].replace(/^.*@/, "")} · ${parts[1]}` : id;
}

function pad(value) {
  return String(Math.floor(value)).padStart(2, "0");
}

// A value as JSON to read: media inside it are told by kind and size, and long vectors by their first numbers.
export function readable(value) {
  return JSON.stringify(value, (_, one) => {
    if (typeof one === "string") return one.replace(/^data:([\w.+-]+\/[\w.+-]+);base64,(.*)$/s, (_, kind, text) => media(kind, text));
    const isVector = Array.isArray(one) && one.length > 16 && one.every((number) => typeof number === "number");
    return isVector ? `${count(one.length)} numbers: ${one.slice(0, 4).join(", ")}, …` : one;
  }, 2);
}

function media(kind, base64) {
  const bytes = Math.floor((base64.replace(/=+$/, "").length * 3) / 4);
  return `${kind}, ${bytes < 1000 ? `${bytes} bytes` : `${count(bytes / 1000)} kB`}`;
}
