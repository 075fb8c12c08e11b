// The settings of a conversation: what they are, in words, and the dialog that changes them.

import { savedKey, saveKey } from "./api.js";
import { ask, byId, el } from "./dom.js";

const NUMBERS = {
  temperature: ["Temperature", "a number from 0 to 2", (n) => n >= 0 && n <= 2],
  topP: ["Top p", "a number above 0, at most 1", (n) => n > 0 && n <= 1],
  maxTokens: ["Max tokens", "a whole number from 1", (n) => Number.isSafeInteger(n) && n >= 1],
  seed: ["Seed", "a whole number", (n) => Number.isSafeInteger(n)],
};

/** Edit a conversation's settings and system prompt; true if they were saved. */
export async function editSettings(conversation, models) {
  const dialog = byId("settings");
  const form = byId("settings-form");
  const { elements } = form;
  const { settings } = conversation;
  elements.system.value = conversation.system;
  const names = [...new Set([...models, settings.model].filter(Boolean))];
  elements.model.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  elements.model.value = settings.model || names[0] || "";
  for (const name of Object.keys(NUMBERS)) elements[name].value = settings[name] ?? "";
  elements.json.checked = settings.json;
  byId("forget-key").hidden = !savedKey() && !savedKey("admin");
  showProblem("");

  form.onsubmit = (event) => {
    event.preventDefault();
    const read = readNumbers(elements);
    if (typeof read === "string") {
      showProblem(read);
      return;
    }
    conversation.system = elements.system.value;
    const model = elements.model.value === names[0] && !settings.model ? "" : elements.model.value;
    conversation.settings = { ...read, model, json: elements.json.checked };
    dialog.close("saved");
  };
  return await ask(dialog) === "saved";
}

/** The values of the number fields; or, as text, what is wrong with one of them. */
function readNumbers(elements) {
  const values = {};
  for (const [name, [label, allowed, isAllowed]] of Object.entries(NUMBERS)) {
    const field = elements[name];
    const text = field.value.trim();
    const value = text === "" ? null : Number(text);
    if (field.validity.badInput || (value !== null && !isAllowed(value))) {
      field.focus();
      return `${label} must be ${allowed}${text ? `, but is ${text}` : ""}.`;
    }
    values[name] = value;
  }
  return values;
}

function showProblem(text) {
  const problem = byId("settings-problem");
  problem.textContent = text;
  problem.hidden = text === "";
}

byId("forget-key").addEventListener("click", (event) => {
  saveKey("");
  saveKey("", "admin");
  event.currentTarget.hidden = true;
});

/** What differs from the server's defaults, in a line. */
export function describeSettings({ system, settings }) {
  const parts = [];
  if (system.trim()) parts.push("system prompt");
  if (settings.temperature !== null) parts.push(`temperature ${settings.temperature}`);
  if (settings.topP !== null) parts.push(`top p ${settings.topP}`);
  if (settings.maxTokens !== null) parts.push(`at most ${settings.maxTokens} tokens`);
  if (settings.seed !== null) parts.push(`seed ${settings.seed}`);
  if (settings.json) parts.push("JSON");
  return parts.join(" · ");
}

/** Ask for a key, say why, and keep it for this tab; false if none was given. */
export async function askForKey(why, kind = "api") {
  const dialog = byId("ask-key");
  const form = byId("ask-key-form");
  byId("ask-key-text").textContent = why;
  form.elements.key.value = "";
  form.onsubmit = (event) => {
    event.preventDefault();
    saveKey(form.elements.key.value.trim(), kind);
    dialog.close("given");
  };
  return await ask(dialog) === "given";
}

for (const button of document.querySelectorAll("dialog [data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
