// The official Node client.
import OpenAI, { toFile } from "openai";
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
      client.chat.completions.create({ ...asked, mirostat: 2 }),
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

  async tools() {
    const parameters = {
      type: "object",
      properties: { city: { type: "string", maxLength: 40 } },
      required: ["city"],
      additionalProperties: false,
    };
    const weather = { type: "function", function: { name: "weather", strict: true, parameters } };
    const wanted = {
      ...asked,
      messages: user("How is the weather in Paris?"),
      max_tokens: 100,
      tools: [weather],
      tool_choice: { type: "function", function: { name: "weather" } },
    };
    const whole = await client.chat.completions.create(wanted);
    const [call] = whole.choices[0].message.tool_calls;
    check(call.function.name === "weather" && typeof JSON.parse(call.function.arguments).city === "string");
    const streamed = await client.chat.completions.stream(wanted).finalChatCompletion();
    check(streamed.choices[0].message.tool_calls[0].function.arguments === call.function.arguments);
  },

  async responses() {
    const wanted = { model: MODEL, input: "What is the capital of France?", temperature: 0, max_output_tokens: 24 };
    const whole = await client.responses.create(wanted);
    check(whole.output_text.includes("Paris"), whole.output_text);
    let text = "";
    let next = 0;
    for await (const event of await client.responses.create({ ...wanted, stream: true })) {
      check(event.sequence_number === next++, `event ${event.sequence_number}`);
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    check(text === whole.output_text, text);
  },

  async "responses in the background"() {
    const stream = await client.responses.create({
      model: MODEL,
      input: "Write a long story.",
      temperature: 0,
      max_output_tokens: 60,
      background: true,
      stream: true,
    });
    let id = null;
    let last = -1;
    for await (const event of stream) {
      id ??= event.response.id;
      last = event.sequence_number;
      if (last >= 7) break;
    }
    let kind = null;
    for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: last })) {
      check(event.sequence_number === ++last, `event ${event.sequence_number}`);
      kind = event.type;
    }
    check(["response.completed", "response.incomplete"].includes(kind), kind);
    const cancelled = await client.responses.create({ model: MODEL, input: "Write a long story.", background: true });
    await client.responses.cancel(cancelled.id);
    let found = await client.responses.retrieve(cancelled.id);
    for (let tries = 0; found.status === "in_progress" && tries < 100; tries++) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      found = await client.responses.retrieve(cancelled.id);
    }
    check(found.status === "cancelled", found.status);
  },

  async batches() {
    const lines = Array.from({ length: 12 }, (_, n) => ({
      custom_id: `line-${n}`,
      method: "POST",
      url: "/v1/chat/completions",
      body: { ...asked, max_tokens: 4 },
    }));
    const content = lines.map((line) => JSON.stringify(line)).join("\n");
    const file = await client.files.create({ file: await toFile(Buffer.from(content), "in.jsonl"), purpose: "batch" });
    let batch = await client.batches.create({
      input_file_id: file.id,
      endpoint: "/v1/chat/completions",
      completion_window: "24h",
    });
    for (let tries = 0; !["completed", "failed"].includes(batch.status) && tries < 300; tries++) {
      await new Promise((resolve) => setTimeout(resolve, 200));
      batch = await client.batches.retrieve(batch.id);
    }
    check(batch.status === "completed", JSON.stringify(batch));
    const output = await (await client.files.content(batch.output_file_id)).text();
    const ids = output.trim().split("\n").map((line) => JSON.parse(line).custom_id);
    check(new Set(ids).size === 12 && ids.length === 12, ids.join());
  },

  async embeddings() {
    const wanted = { model: "minilm", input: ["a mill on the river", "tax law"] };
    const vectors = (await client.embeddings.create(wanted)).data.map((each) => each.embedding);
    const plain = (await client.embeddings.create({ ...wanted, encoding_format: "float" })).data[0].embedding;
    check(vectors[0].length === 384 && plain.every((value, index) => Math.abs(value - vectors[0][index]) < 1e-6));
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
