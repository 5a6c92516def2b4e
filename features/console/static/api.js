// Calls of the public API with the key of this tab, and its streams of server-sent events.

import { key, signOut } from "./session.js";

// The page is PREFIX/console, the API is PREFIX/v1: it also works behind a proxy that serves both under a path.
export const BASE = new URL("v1/", document.baseURI);

export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered ${status}`);
    this.status = status;
    this.code = error?.code ?? null;
  }
}

function headers(token, body, ifMatch) {
  const found = { Authorization: `Bearer ${token}` };
  if (ifMatch !== undefined) found["If-Match"] = `"${ifMatch}"`;
  if (body !== undefined) found["Content-Type"] = "application/json";
  return found;
}

async function failure(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    error = null; // an answer of a proxy, not of the API
  }
  return new ApiError(response.status, error);
}

async function send(method, path, { body, signal, token = key(), accept = "application/json", ifMatch } = {}) {
  const content = body === undefined ? undefined : JSON.stringify(body);
  let response;
  try {
    const all = { ...headers(token, body, ifMatch), Accept: accept };
    response = await fetch(new URL(path, BASE), { method, headers: all, body: content, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "the server cannot be reached" });
  }
  if (response.ok) return response;
  if (response.status === 401 && token === key()) signOut();
  throw await failure(response);
}

export async function call(method, path, options) {
  const response = await send(method, path, options);
  return response.status === 204 ? null : response.json();
}

export const get = (path, options) => call("GET", path, options);
export const post = (path, body = {}, options = {}) => call("POST", path, { ...options, body });

export const text = async (path, options = {}) => (await send("GET", path, { ...options, accept: "*/*" })).text();

// Save a file of the API. A link would not carry the key.
export async function download(path, name) {
  const response = await send("GET", path, { accept: "*/*" });
  const url = URL.createObjectURL(await response.blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  URL.revokeObjectURL(url);
}

// Read a stream of events. Each is {name, id, data}. Returns when the server has ended the stream.
export async function readEvents(method, path, onEvent, options) {
  const response = await send(method, path, { ...options, accept: "text/event-stream" });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const event = parseEvent(block);
      if (event !== null) onEvent(event);
    }
  }
}

function parseEvent(block) {
  const event = { name: "", id: "", data: "" };
  for (const line of block.split("\n")) {
    if (line.startsWith("data: ")) event.data += line.slice(6);
    else if (line.startsWith("event: ")) event.name = line.slice(7);
    else if (line.startsWith("id: ")) event.id = line.slice(4);
  }
  if (event.data === "") return null;
  if (event.data !== "[DONE]") event.data = JSON.parse(event.data);
  return event;
}
