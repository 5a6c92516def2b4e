// The official Node client.
import OpenAI from "openai";
import { randomUUID } from "node:crypto";

const MODEL = "smollm2";
const base = process.env.OPENAI_BASE_URL;
const client = new OpenAI({ maxRetries: 0 });
const user = (content) => [{ role: "user", content }];
const asked = { model: MODEL, messages: user("What is the capital of France?"), temperature: 0, max_tokens: 24 };

function check(condition, message) {
  if (!condition) throw new Error(message ?? "not so");
}

async function raises(kind, code, call) {
  try {
    await call();
  } catch (error) {
    check(error instanceof kind, `${error?.constructor?.name}: ${error?.message}`);
    check(error.code === code, `code ${error.code}`);
    return;
  }
  throw new Error(`no ${kind.name}`);
}

async function jobsOf(run) {
  const answer = await fetch(`${base}/jobs?metadata[run]=${run}`, {
    headers: { Authorization: `Bearer ${process.env.OPENAI_API_KEY}` },
  });
  return (await answer.json()).data;
}

async function waitUntilCancelled(run) {
  const deadline = Date.now() + 20_000;
  for (;;) {
    const [job] = await jobsOf(run);
    if (!["queued", "running"].includes(job.status)) return check(job.status === "cancelled", job.status);
    check(Date.now() < deadline, `the job still is ${job.status}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const features = {
  async chat() {
    const whole = await client.chat.completions.create(asked);
    check(whole.choices[0].message.content.includes("Paris"));
    check(whole.usage.total_tokens === whole.usage.prompt_tokens + whole.usage.completion_tokens);
  },

  async "chat, streamed"() {
    const whole = await client.chat.completions.create(asked);
    const stream = await client.chat.completions.create({
      ...asked,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    check(text === whole.choices[0].message.content, text);
    check(usage.total_tokens === whole.usage.total_tokens);
  },

  async "chat, stream helper"() {
    const stream = client.chat.completions.stream(asked);
    let text = "";
    stream.on("content", (delta) => (text += delta));
    check((await stream.finalContent()) === text && text.includes("Paris"), text);
  },

  async "async and concurrent"() {
    const answers = await Promise.all(Array.from({ length: 8 }, () => client.chat.completions.create(asked)));
    check(new Set(answers.map((answer) => answer.choices[0].message.content)).size === 1);
  },

  async "leaving a stream cancels"() {
    for (const numChunks of [1, 3, 9]) {
      const run = randomUUID();
      const stream = await client.chat.completions.create({
        ...asked,
        messages: user("Write a long story about a water mill and its miller."),
        max_tokens: 1000,
        stream: true,
        metadata: { run },
      });
      let seen = 0;
      for await (const _ of stream) if (++seen === numChunks) break;
      await waitUntilCancelled(run);
    }
  },

  async "leaving a call cancels"() {
    const run = randomUUID();
    const leaving = new AbortController();
    const call = client.chat.completions.create(
      { ...asked, messages: user("Write a long story."), max_tokens: 1000, metadata: { run } },
      { signal: leaving.signal },
    );
    const aborted = call.then(
      () => false,
      (error) => error instanceof OpenAI.APIUserAbortError,
    );
    while ((await jobsOf(run)).length === 0) await new Promise((resolve) => setTimeout(resolve, 20));
    leaving.abort();
    check(await aborted, "no APIUserAbortError");
    await waitUntilCancelled(run);
  },

  async "retry of a lost answer"() {
    const run = randomUUID();
    const retrying = new OpenAI({ baseURL: process.env.CUTTING_BASE_URL, maxRetries: 2 });
    const answer = await retrying.chat.completions.create({ ...asked, metadata: { run } });
    check(answer.choices[0].message.content.includes("Paris"));
    const jobs = await jobsOf(run);
    check(jobs.length === 1 && jobs[0].status === "succeeded", `${jobs.length} jobs`);
  },

  async "error: bad key"() {
    const nobody = new OpenAI({ apiKey: "hr_nobody_nothing", maxRetries: 0 });
    await raises(OpenAI.AuthenticationError, "invalid_api_key", () => nobody.chat.completions.create(asked));
  },

  async "error: unknown model"() {
    await raises(OpenAI.NotFoundError, "model_not_found", () =>
      client.chat.completions.create({ ...asked, model: "nobody" }),
    );
  },

  async "error: prompt too long"() {
    await raises(OpenAI.BadRequestError, "context_length_exceeded", () =>
      client.chat.completions.create({ ...asked, messages: user("water ".repeat(12_000)) }),
    );
  },

  async "error: field refused"() {
    await raises(OpenAI.BadRequestError, "unsupported_parameter", () =>
      client.chat.completions.create({ ...asked, n: 2 }),
    );
  },

  async "structured output"() {
    const schema = {
      type: "object",
      properties: { name: { type: "string", maxLength: 40 }, size: { enum: ["small", "large"] } },
      required: ["name", "size"],
      additionalProperties: false,
    };
    const answer = await client.chat.completions.parse({
      ...asked,
      max_tokens: 200,
      response_format: { type: "json_schema", json_schema: { name: "city", strict: true, schema } },
    });
    const city = JSON.parse(answer.choices[0].message.content);
    check(typeof city.name === "string" && ["small", "large"].includes(city.size), JSON.stringify(city));
  },

  async logprobs() {
    const answer = await client.chat.completions.create({ ...asked, logprobs: true, top_logprobs: 2 });
    for (const token of answer.choices[0].logprobs.content)
      check(token.logprob <= 0 && token.top_logprobs.length === 2, JSON.stringify(token));
  },

  async "text completion"() {
    const wanted = { model: MODEL, prompt: "The capital of France is", temperature: 0, max_tokens: 8 };
    const whole = await client.completions.create(wanted);
    let text = "";
    for await (const chunk of await client.completions.create({ ...wanted, stream: true })) text += chunk.choices[0]?.text ?? "";
    check(text === whole.choices[0].text && text.includes("Paris"), text);
  },

  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    check(names.includes(MODEL), names.join());
    check((await client.models.retrieve(`${MODEL}@1`)).id === `${MODEL}@1`);
  },
};

const only = process.argv.slice(2);
for (const [feature, proof] of Object.entries(features)) {
  if (only.length && !only.some((word) => feature.includes(word))) continue;
  const began = Date.now();
  let error = null;
  try {
    await proof();
  } catch (raised) {
    error = raised?.stack ?? String(raised);
  }
  console.log(JSON.stringify({ feature, error, took_s: (Date.now() - began) / 1000 }));
}
