// The page: which conversation is shown, what is asked, and what is answering.

import { ServerError, listModels, savedKey } from "./api.js";
import { byId } from "./dom.js";
import "./live.js";
import { MessageList } from "./messages.js";
import { askForKey, describeSettings, editSettings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";
import { receive, requestBody } from "./talk.js";

const RETRY_MS = 1500;
const MAX_ANNOUNCED = 2000;

const box = byId("composer-text");
const notice = byId("notice");

const store = new Store(tell);
const answering = new Map(); // conversation -> AbortController
let current = store.conversations[0] ?? store.create();
let models = [];

const list = new MessageList(byId("scroller"), byId("messages"), {
  regenerate: (index) => {
    if (stopFirst()) return;
    current.messages.length = index;
    answer(current);
  },
  edit: (index, text) => {
    if (stopFirst()) return;
    current.messages.length = index;
    current.messages.push({ role: "user", content: text });
    answer(current);
  },
});

const sidebar = new Sidebar({
  choose: (conversation) => {
    sidebar.close();
    choose(conversation);
    box.focus();
  },
  rename: (conversation, title) => {
    conversation.title = title;
    store.save(conversation);
    showSidebar();
  },
  remove: (conversation) => {
    answering.get(conversation)?.abort();
    store.remove(conversation);
    if (conversation === current) choose(store.conversations[0] ?? store.create());
    else showSidebar();
  },
});

function tell(problem) {
  notice.textContent = problem;
  notice.hidden = problem === "";
}

function choose(conversation) {
  current = conversation;
  showAll();
}

function showAll() {
  list.show(current, answering.has(current));
  showSidebar();
  showComposer();
}

function showSidebar() {
  sidebar.show(store.conversations, current, (conversation) => answering.has(conversation));
}

function showComposer() {
  const busy = answering.has(current);
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  byId("active-settings").textContent = describeSettings(current);
}

/** While an answer comes, nothing else is changed; says so. */
function stopFirst() {
  if (!answering.has(current)) return false;
  tell("An answer is still coming: stop it first.");
  return true;
}

/** Ask for the next message of a conversation, and show it as it comes. */
async function answer(conversation) {
  const body = requestBody(conversation, models[0] ?? "");
  const message = { role: "assistant", content: "" };
  conversation.messages.push(message);
  const controller = new AbortController();
  answering.set(conversation, controller);
  store.touch(conversation);
  tell("");
  if (conversation === current) showAll();
  try {
    await receive(message, body, controller.signal, () => list.update(message));
  } finally {
    answering.delete(conversation);
  }
  store.save(conversation);
  if (conversation === current) {
    finish(message);
  } else {
    showSidebar();
  }
  if (message.error && [0, 503].includes(message.error.status)) connect();
  if (message.error?.status === 401 && await askForKey(whyKey())) {
    conversation.messages.pop();
    await Promise.all([answer(conversation), connect()]);
  }
}

/** The end of an answer on the page: its figures and buttons, and its text for screen readers. */
function finish(message) {
  const focusWasOnStop = document.activeElement === byId("stop");
  list.update(message);
  showSidebar();
  showComposer();
  if (focusWasOnStop) box.focus();
  const text = message.content.slice(0, MAX_ANNOUNCED);
  byId("announcer").textContent = message.finish === "stopped" ? `Stopped. ${text}` : text;
}

function send() {
  const text = box.value.trim();
  if (!text || stopFirst()) return;
  if (models.length === 0) {
    tell("The model is not ready yet.");
    connect();
    return;
  }
  box.value = "";
  fitBox();
  current.messages.push({ role: "user", content: text });
  answer(current);
}

function fitBox() {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
box.addEventListener("input", fitBox);
box.addEventListener("keydown", (event) => {
  // Enter also ends the choice of a character in input methods for Chinese and others.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
byId("stop").addEventListener("click", () => answering.get(current)?.abort());
document.addEventListener("keydown", (event) => {
  const inDialog = document.querySelector("dialog[open]") !== null;
  if (event.key === "Escape" && !inDialog) answering.get(current)?.abort();
});
byId("new-conversation").addEventListener("click", () => {
  sidebar.close();
  const unused = store.conversations.find((c) => c.messages.length === 0);
  choose(unused ?? store.create(current.settings));
  box.focus();
});
byId("open-settings").addEventListener("click", async () => {
  if (await editSettings(current, models)) {
    store.save(current);
    showComposer();
  }
});

function whyKey() {
  return savedKey() ? "The server does not know this tab's key." : "This server answers with a key only.";
}

let connecting = false;

/** Wait until models are served, and say on the way why they are not. */
async function connect() {
  if (connecting) return;
  connecting = true;
  try {
    let wait = await findModels();
    while (wait !== null) {
      await new Promise((resolve) => { setTimeout(resolve, wait); });
      wait = await findModels();
    }
  } finally {
    connecting = false;
  }
}

/** When to ask again, in ms; null if models are served, or nobody has a key for them. */
async function findModels() {
  try {
    models = (await listModels()).map((model) => model.id);
    setStatus("ready", models[0]);
    tell("");
    return null;
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    if (error.status === 401) {
      setStatus("down", "A key is needed");
      return (await askForKey(whyKey())) ? 0 : null;
    }
    setStatus(error.status === 503 ? "waiting" : "down", error.message);
    return RETRY_MS;
  }
}

function setStatus(state, text) {
  byId("status-dot").dataset.state = state;
  if (byId("status").textContent !== text) byId("status").textContent = text;
}

showAll();
if (matchMedia("(min-width: 760px)").matches) box.focus();
connect();
