// OpenAI's Agents SDK for JavaScript: agents with tools, handoffs and output types, over both APIs.
import {
  Agent,
  MaxTurnsExceededError,
  ModelBehaviorError,
  OpenAIChatCompletionsModel,
  OpenAIResponsesModel,
  run,
  setTracingDisabled,
  tool,
} from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";
import { check, main, MODEL } from "./reporting.mjs";

setTracingDisabled(true);
const client = new OpenAI({ maxRetries: 0 });
const models = [new OpenAIChatCompletionsModel(client, MODEL), new OpenAIResponsesModel(client, MODEL)];
const City = z.object({ name: z.string().max(30), inhabitants: z.number().int().min(0).max(99_999_999) });
let calls = 0;
const weather = tool({
  name: "weather",
  description: "Return the weather in a city.",
  parameters: z.object({ city: z.string().max(30) }),
  execute: async () => {
    calls += 1;
    return "It rains.";
  },
});

// So small a model may call for ever, or go on up to the token limit.
async function unlessItGoesOn(promise) {
  try {
    return await promise;
  } catch (error) {
    check(error instanceof MaxTurnsExceededError || error instanceof ModelBehaviorError, String(error));
  }
}

await main({
  async agent() {
    for (const model of models) {
      const agent = new Agent({ name: "guide", model, modelSettings: { temperature: 0, maxTokens: 60 } });
      check((await run(agent, "What is the capital of France?")).finalOutput.includes("Paris"));
    }
  },

  async "agent, streamed"() {
    for (const model of models) {
      const agent = new Agent({ name: "guide", model, modelSettings: { temperature: 0, maxTokens: 60 } });
      const result = await run(agent, "What is the capital of France?", { stream: true });
      let text = "";
      for await (const piece of result.toTextStream()) text += piece;
      await result.completed;
      check(text.includes("Paris"), text);
    }
  },

  async "agent with tools"() {
    for (const model of models) {
      calls = 0;
      const modelSettings = { temperature: 0, maxTokens: 60, toolChoice: "required" };
      const agent = new Agent({ name: "guide", model, tools: [weather], modelSettings });
      await unlessItGoesOn(run(agent, "How is the weather in Paris?", { maxTurns: 2 }));
      check(calls > 0, "not called");
    }
  },

  async "agent with an output type"() {
    for (const model of models) {
      const modelSettings = { temperature: 0, maxTokens: 120 };
      const agent = new Agent({ name: "guide", model, outputType: City, modelSettings });
      City.parse((await run(agent, "Tell me about Paris.")).finalOutput);
    }
  },

  async "agent with an output type and tools"() {
    for (const model of models) {
      const modelSettings = { temperature: 0, maxTokens: 120 };
      const agent = new Agent({ name: "guide", model, outputType: City, tools: [weather], modelSettings });
      await unlessItGoesOn(run(agent, "Tell me about Paris.", { maxTurns: 2 }));
    }
  },

  async "error: unknown model"() {
    for (const Kind of [OpenAIChatCompletionsModel, OpenAIResponsesModel]) {
      try {
        await run(new Agent({ name: "guide", model: new Kind(client, "nobody") }), "hi");
      } catch (error) {
        check(error instanceof OpenAI.NotFoundError && error.code === "model_not_found", String(error));
        continue;
      }
      throw new Error("no NotFoundError");
    }
  },
});
