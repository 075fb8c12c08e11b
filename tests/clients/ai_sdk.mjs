// Vercel's AI SDK as it comes, over its three providers: two turns with a tool each.
import { generateText, streamText, stepCountIs, tool } from "ai";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { z } from "zod";
import assert from "node:assert";

const url = process.env.OPENAI_BASE_URL;
const models = {
  responses: createOpenAI({ baseURL: url, apiKey: "none" })("scripted"),
  chat: createOpenAI({ baseURL: url, apiKey: "none" }).chat("scripted"),
  compatible: createOpenAICompatible({ name: "loire", baseURL: url })("scripted"),
  anthropic: createAnthropic({ baseURL: url, apiKey: "none" })("scripted"),
};
const tools = {
  level: tool({
    description: "How high the river is.",
    inputSchema: z.object({ station: z.string() }),
    execute: async ({ station }) => `${station}: 2.5 m`,
  }),
};
for (const [name, model] of Object.entries(models)) {
  for (const streamed of [false, true]) {
    const messages = [];
    for (const station of ["Tours", "Blois"]) {
      messages.push({ role: "user", content: `How high is it at ${station}?` });
      const asked = { model, tools, messages, stopWhen: stepCountIs(3), maxRetries: 0 };
      const result = streamed ? streamText(asked) : await generateText(asked);
      const text = await result.text;
      assert.match(text, new RegExp(`It gave: .*${station}: 2.5 m`), `${name}: ${text}`);
      messages.push(...(await result.response).messages);
    }
  }
}
