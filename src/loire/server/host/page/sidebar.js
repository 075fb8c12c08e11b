// The list of conversations: choose, rename, delete.

import { ask, byId, el } from "./dom.js";
import { titleOf } from "./store.js";

export class Sidebar {
  #list = byId("conversations");
  #actions;

  /** actions: { choose(conversation), rename(conversation, title), remove(conversation) } */
  constructor(actions) {
    this.#actions = actions;
    const drawer = new Drawer(byId("sidebar"), byId("open-sidebar"), byId("scrim"));
    this.close = () => drawer.close();
  }

  show(conversations, current, answering) {
    this.#list.replaceChildren(
      ...conversations
        .filter((conversation) => conversation.messages.length > 0 || conversation === current)
        .map((conversation) => this.#entry(conversation, conversation === current, answering)),
    );
  }

  #entry(conversation, isCurrent, answering) {
    const title = titleOf(conversation);
    const entry = el("li", { class: isCurrent ? "current" : "" });
    const choose = el(
      "button", {
        type: "button",
        class: "choose",
        "aria-current": isCurrent ? "true" : null,
        on: { click: () => this.#actions.choose(conversation) },
      },
      title,
      answering(conversation) ? el("span", { class: "dot", "data-state": "busy", title: "answering" }) : null,
    );
    entry.append(choose);
    if (conversation.messages.length > 0) {
      entry.append(
        small("Rename", title, () => this.#rename(entry, conversation)),
        small("Delete", title, () => this.#remove(conversation, title)),
      );
    }
    return entry;
  }

  #rename(entry, conversation) {
    const box = el("input", { type: "text", "aria-label": "Title", maxlength: "200" });
    box.value = titleOf(conversation);
    let done = false;
    const end = (keep) => {
      if (done) return;
      done = true;
      this.#actions.rename(conversation, keep ? box.value.trim() : conversation.title);
      this.#list.querySelector("[aria-current]")?.focus();
    };
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        end(false);
      }
    });
    box.addEventListener("blur", () => end(true));
    entry.replaceChildren(box);
    box.focus();
    box.select();
  }

  async #remove(conversation, title) {
    byId("confirm-text").textContent = `“${title}” is removed from this browser for good.`;
    if (await ask(byId("confirm")) === "yes") this.#actions.remove(conversation);
  }
}

function small(text, title, onClick) {
  return el(
    "button",
    { type: "button", class: "quiet small", "aria-label": `${text} ${title}`, on: { click: onClick } },
    text,
  );
}

/** A panel that is beside the page where there is room, and over it where there is not. */
class Drawer {
  #panel;
  #opener;
  #scrim;

  constructor(panel, opener, scrim) {
    this.#panel = panel;
    this.#opener = opener;
    this.#scrim = scrim;
    opener.addEventListener("click", () => (this.#isOpen ? this.close() : this.#open()));
    scrim.addEventListener("click", () => this.close());
    panel.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.close();
    });
  }

  get #isOpen() {
    return this.#panel.classList.contains("open");
  }

  #open() {
    this.#set(true);
    this.#panel.querySelector("button").focus();
  }

  close() {
    if (!this.#isOpen) return;
    this.#set(false);
    this.#opener.focus();
  }

  #set(open) {
    this.#panel.classList.toggle("open", open);
    this.#scrim.hidden = !open;
    this.#opener.setAttribute("aria-expanded", String(open));
  }
}
