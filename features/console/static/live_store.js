// The state of the Live page: one stream of events for the whole tab, and what it has sent last.

import { useEffect, useState } from "./vendor/htm-preact.js";
import { readEvents } from "./api.js";
import { key } from "./session.js";

const RETRY_MS = [500, 1000, 2000, 5000];
const state = { live: null, history: null, status: "connecting", error: null };
const watchers = new Set();
let running = null;
let version = 0;

export function start() {
  if (running !== null) return;
  running = new AbortController();
  follow(running.signal);
}

export function stop() {
  running?.abort();
  running = null;
  Object.assign(state, { live: null, history: null, status: "connecting", error: null });
}

async function follow(signal) {
  let failures = 0;
  while (!signal.aborted && key() !== null) {
    try {
      await readEvents("GET", "live", (event) => {
        failures = 0;
        update({ status: "live", error: null, [event.name]: event.data });
      }, { signal });
    } catch (error) {
      if (signal.aborted) return;
      update({ error: error.message });
      if (error.status === 403 || error.status === 401) {
        update({ status: "refused" });
        return;
      }
    }
    update({ status: "lost" });
    await new Promise((done) => setTimeout(done, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]));
    failures += 1;
  }
}

function update(changes) {
  Object.assign(state, changes);
  version += 1;
  watchers.forEach((watch) => watch());
}

export function useLive() {
  const [, redraw] = useState(0);
  const drawn = version;
  useEffect(() => {
    const watch = () => redraw((n) => n + 1);
    watchers.add(watch);
    // An event that came between the drawing and this effect would be shown a second late, with the next one.
    if (version !== drawn) watch();
    return () => watchers.delete(watch);
  }, []);
  return state;
}
