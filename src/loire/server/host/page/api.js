// The server's API: requests, its errors, its streams of events.

const KEY = "loire.key";
export const KEY_CHANGE = "loire-key-change";

/** What the server, or the way to it, said no with. status 0: it cannot be reached. */
export class ServerError extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.name = "ServerError";
    this.status = status;
    this.retryAfter = retryAfter;
  }

  /** In one sentence for a person, with when to try again if the server said so. */
  get explanation() {
    if (this.retryAfter === null) return this.message;
    return `${this.message} Try again in ${this.retryAfter} s.`;
  }
}

/** Keys are kept per tab: for chat, and apart from it the one that may watch the batch. */
export function savedKey(kind = "api") {
  return sessionStorage.getItem(`${KEY}.${kind}`) ?? "";
}

/** Keep a key, or with "" forget it; the document hears of it by the event KEY_CHANGE. */
export function saveKey(key, kind = "api") {
  if (key) sessionStorage.setItem(`${KEY}.${kind}`, key);
  else sessionStorage.removeItem(`${KEY}.${kind}`);
  document.dispatchEvent(new Event(KEY_CHANGE));
}

/** A response that is a success. Raises ServerError, or AbortError if the signal says so. */
export async function request(path, { body, signal, key = savedKey() } = {}) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server cannot be reached.");
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  let message = `The server answered ${response.status} ${response.statusText}`.trim() + ".";
  try {
    message = sentence((await response.json()).error.message);
  } catch (error) {
    // An answer that is not the API's, such as a proxy's: its status says what there is to say.
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
  }
  const after = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  return new ServerError(response.status, message, Number.isNaN(after) ? null : after);
}

function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

/** The models that are served, first the default one. */
export async function listModels() {
  return (await (await request("v1/models")).json()).data;
}

/** The chunks of an answer. Raises ServerError, also for an error inside the stream. */
export async function* streamChat(body, signal) {
  const response = await request("v1/chat/completions", {
    body: { ...body, stream: true, stream_options: { include_usage: true } },
    signal,
  });
  yield* events(response);
}

/** The JSON values of a stream of server-sent events, until [DONE] or its end. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      let read;
      try {
        read = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ServerError(0, "The connection broke.");
      }
      if (read.done) return;
      const lines = (rest + read.value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const value = JSON.parse(data);
        if (value.error) throw new ServerError(500, sentence(value.error.message));
        yield value;
      }
    }
  } finally {
    // Without this the server would go on writing to a reader that has left.
    reader.cancel().catch(() => undefined);
  }
}
