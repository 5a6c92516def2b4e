// Vercel's AI SDK with its providers for OpenAI (responses and chat), for compatible servers and for Anthropic.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embed, generateObject, generateText, Output, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import { check, main, MODEL } from "./reporting.mjs";

const at = { baseURL: process.env.OPENAI_BASE_URL, apiKey: process.env.OPENAI_API_KEY };
const openai = createOpenAI(at);
const compatible = createOpenAICompatible({ ...at, name: "headrace", supportsStructuredOutputs: true });
const anthropic = createAnthropic(at);
const models = [openai(MODEL), openai.chat(MODEL), compatible(MODEL), anthropic(MODEL)];
const asked = { prompt: "What is the capital of France?", temperature: 0, maxOutputTokens: 60, maxRetries: 0 };
const City = z.object({ name: z.string().max(30), inhabitants: z.number().int().min(0).max(99_999_999) });
const tools = {
  weather: tool({
    description: "Return the weather in a city.",
    inputSchema: z.object({ city: z.string().max(30) }),
    execute: async () => "It rains.",
  }),
};

await main({
  async chat() {
    for (const model of models) {
      const { text, usage } = await generateText({ ...asked, model });
      check(text.includes("Paris") && usage.totalTokens > 0, text);
    }
  },

  async "chat, streamed"() {
    for (const model of models) {
      let text = "";
      for await (const piece of streamText({ ...asked, model }).textStream) text += piece;
      check(text.includes("Paris"), text);
    }
  },

  async "structured output"() {
    for (const model of models) {
      const { object } = await generateObject({ ...asked, model, schema: City, maxOutputTokens: 120 });
      City.parse(object);
    }
  },

  async "structured output, streamed"() {
    for (const model of models) {
      const { object, partialObjectStream } = streamObject({ ...asked, model, schema: City, maxOutputTokens: 120 });
      for await (const part of partialObjectStream) check(typeof part === "object");
      City.parse(await object);
    }
  },

  async "agent with tools"() {
    for (const model of models) {
      const { steps } = await generateText({
        ...asked,
        model,
        tools,
        toolChoice: "required",
        stopWhen: stepCountIs(2),
      });
      check(steps[0].toolCalls.length === 1 && steps.length === 2, JSON.stringify(steps.length));
    }
  },

  async "agent with an output type and tools"() {
    for (const model of models) {
      await generateText({
        ...asked,
        model,
        tools,
        output: Output.object({ schema: City }),
        stopWhen: stepCountIs(2),
        maxOutputTokens: 120,
      });
    }
  },

  async embeddings() {
    const { embedding } = await embed({ model: openai.embedding("minilm"), value: "a mill", maxRetries: 0 });
    check(embedding.length === 384);
  },

  async "error: unknown model"() {
    for (const model of [openai("nobody"), openai.chat("nobody"), compatible("nobody"), anthropic("nobody")]) {
      try {
        await generateText({ ...asked, model });
      } catch (error) {
        check(APICallError.isInstance(error) && error.statusCode === 404, String(error));
        continue;
      }
      throw new Error("no APICallError");
    }
  },
});
