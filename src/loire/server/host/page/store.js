// The conversations, kept in this browser: bounded in number and in size.

const PLACE = "loire.conversations";
const MAX_CONVERSATIONS = 50;
const MAX_CHARACTERS = 2_000_000;
const SAVE_AFTER_MS = 400;

/**
 * What a conversation asks of the server; null and "" mean the server's default, which for sampling
 * is what the model's makers recommend.
 */
export const DEFAULTS = Object.freeze({
  model: "",
  temperature: null,
  topP: null,
  maxTokens: null,
  seed: null,
  json: false,
});

/** The conversations, the one talked in last first. */
export class Store {
  #timer = null;
  #changed = new Set();
  #removed = new Set();
  #onProblem;

  /** onProblem: told a sentence when the browser does not keep them, and "" when it does again. */
  constructor(onProblem) {
    this.#onProblem = onProblem;
    this.conversations = this.#load();
    addEventListener("pagehide", () => this.flush());
  }

  /** A new conversation, first in the list; it is kept once something was said in it. */
  create(settings = DEFAULTS) {
    const conversation = {
      id: `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`,
      title: "",
      system: "",
      settings: { ...DEFAULTS, ...settings },
      messages: [],
    };
    this.conversations.unshift(conversation);
    return conversation;
  }

  remove(conversation) {
    this.conversations = this.conversations.filter((other) => other !== conversation);
    this.#changed.delete(conversation);
    this.#removed.add(conversation.id);
    this.flush();
  }

  /** Move to the front: it is the one talked in now. */
  touch(conversation) {
    this.conversations = [
      conversation, ...this.conversations.filter((other) => other !== conversation),
    ];
    this.save(conversation);
  }

  /** Keep what has changed in a conversation, soon. */
  save(conversation) {
    this.#changed.add(conversation);
    this.#timer ??= setTimeout(() => this.flush(), SAVE_AFTER_MS);
  }

  /**
   * Keep what has changed, now. Conversations that other tabs have saved in the meantime stay; the
   * oldest go if there are too many, or too much in them.
   */
  flush() {
    clearTimeout(this.#timer);
    this.#timer = null;
    const changed = [...this.#changed].filter((c) => c.messages.length > 0);
    if (changed.length === 0 && this.#removed.size === 0) return;
    const order = new Map(this.conversations.map((c, index) => [c.id, index]));
    changed.sort((a, b) => order.get(a.id) - order.get(b.id));
    const replaced = new Set([...changed.map((c) => c.id), ...this.#removed]);
    const kept = [...changed, ...this.#load().filter((c) => !replaced.has(c.id))];
    kept.length = Math.min(kept.length, MAX_CONVERSATIONS);
    let text = JSON.stringify(kept);
    while (text.length > MAX_CHARACTERS && kept.length > 1) {
      kept.pop();
      text = JSON.stringify(kept);
    }
    try {
      localStorage.setItem(PLACE, text);
    } catch (error) {
      this.#onProblem(`This browser does not keep the conversations: ${error.message}`);
      return;
    }
    this.#changed.clear();
    this.#removed.clear();
    this.#onProblem("");
  }

  #load() {
    let found;
    try {
      found = JSON.parse(localStorage.getItem(PLACE) ?? "[]");
    } catch (error) {
      this.#onProblem(`The saved conversations cannot be read: ${error.message}`);
      return [];
    }
    return Array.isArray(found) ? found.filter(isConversation) : [];
  }
}

function isConversation(value) {
  return typeof value?.id === "string" && typeof value.title === "string"
    && typeof value.system === "string"
    && typeof value.settings === "object" && value.settings !== null
    && Array.isArray(value.messages)
    && value.messages.every((m) => typeof m?.content === "string" && typeof m.role === "string");
}

/** What a list calls a conversation: its title, or how it begins. */
export function titleOf(conversation) {
  const begin = conversation.messages.find((message) => message.role === "user")?.content ?? "";
  const text = conversation.title || begin.trim().split("\n")[0];
  return text.length > 60 ? `${text.slice(0, 58)}…` : text || "New conversation";
}
