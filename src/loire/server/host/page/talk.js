// One answer: asked for, received piece by piece, measured.

import { ServerError, streamChat } from "./api.js";

/** The body of a request for the next message of a conversation. */
export function requestBody(conversation, model) {
  const { settings, system, messages } = conversation;
  const body = { model: settings.model || model, messages: [] };
  if (system.trim()) body.messages.push({ role: "system", content: system });
  for (const { role, content } of messages) {
    const before = body.messages.at(-1);
    // Where an answer failed before its first token, two questions follow one another; many chat
    // templates refuse that.
    if (content && before?.role === role) before.content += `\n\n${content}`;
    else if (content) body.messages.push({ role, content });
  }
  if (settings.temperature !== null) body.temperature = settings.temperature;
  if (settings.topP !== null) body.top_p = settings.topP;
  if (settings.maxTokens !== null) body.max_completion_tokens = settings.maxTokens;
  if (settings.seed !== null) body.seed = settings.seed;
  if (settings.json) body.response_format = { type: "json_object" };
  return body;
}

/**
 * Receive an answer into a message: content, reasoning, and at its end finish, stats or error.
 * onNews is called after each piece. Never raises what the server or the network did: the message
 * says it.
 */
export async function receive(message, body, signal, onNews) {
  const asked = performance.now();
  let first = null;
  let last = null;
  let usage = null;
  let finish = null;  // the message's own when its figures are there: it is drawn as ended once
  try {
    for await (const chunk of streamChat(body, signal)) {
      usage = chunk.usage ?? usage;
      const choice = chunk.choices[0];
      if (choice === undefined) continue;
      const { content, reasoning_content: reasoning } = choice.delta;
      if (content || reasoning) {
        last = performance.now();
        first ??= last;
      }
      message.content += content ?? "";
      if (reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
      finish = choice.finish_reason ?? finish;
      onNews();
    }
    if (finish === null) throw new ServerError(0, "The answer broke off before its end.");
  } catch (error) {
    if (error.name === "AbortError") {
      finish = "stopped";
    } else if (error instanceof ServerError) {
      message.error = { status: error.status, text: error.explanation };
    } else {
      throw error;
    }
  } finally {
    if (finish !== null) message.finish = finish;
    message.stats = measured(asked, first, last, usage);
  }
}

function measured(asked, first, last, usage) {
  if (first === null) return null;
  const tokens = usage?.completion_tokens ?? null;
  const seconds = (last - first) / 1000;
  return {
    ttftMs: Math.round(first - asked),
    tokens,
    perSecond: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null,
    promptTokens: usage?.prompt_tokens ?? null,
    cachedTokens: usage?.prompt_tokens_details?.cached_tokens ?? null,
  };
}

/** What was measured, as short phrases with an explanation each: [text, title]. */
export function statPhrases({ finish, stats }) {
  const phrases = [];
  if (stats) {
    if (stats.tokens !== null) phrases.push([`${stats.tokens} tokens`, "length of the answer"]);
    if (stats.perSecond) {
      const rate = stats.perSecond < 10 ? stats.perSecond.toFixed(1) : Math.round(stats.perSecond);
      phrases.push([`${rate} tokens/s`, "speed from the first token to the last"]);
    }
    phrases.push([`first after ${duration(stats.ttftMs)}`, "time to first token (TTFT)"]);
    if (stats.cachedTokens) {
      const share = `${stats.cachedTokens} of ${stats.promptTokens} prompt tokens cached`;
      phrases.push([share, "found in the prefix cache, so not computed again"]);
    }
  }
  if (finish === "length") phrases.push(["cut at max tokens", "the limit on tokens ended it"]);
  if (finish === "stopped") phrases.push(["stopped", "by you"]);
  return phrases;
}

function duration(ms) {
  return ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`;
}
