// The messages of one conversation on the page, and what can be done with each.

import { copy, el } from "./dom.js";
import { renderMarkdown } from "./markdown.js";
import { statPhrases } from "./talk.js";

const NEAR_END_PX = 80;

/** actions: { regenerate(index), edit(index, text) }, told the place of a message. */
export class MessageList {
  #scroller;
  #target;
  #actions;
  #views = new Map();
  #drawing = null;
  #stale = new Set();
  #follow = true;

  constructor(scroller, target, actions) {
    this.#scroller = scroller;
    this.#target = target;
    this.#actions = actions;
    scroller.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = scroller;
      this.#follow = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    }, { passive: true });
  }

  /** Show a conversation from its first message, at its end. */
  show(conversation, busy) {
    this.#views.clear();
    this.#stale.clear();
    this.#target.replaceChildren();
    if (conversation.messages.length === 0) this.#target.append(welcome());
    conversation.messages.forEach((message, index) => {
      const view = this.#view(message, index, busy);
      this.#views.set(message, view);
      this.#target.append(view.node);
      this.#draw(message);
    });
    this.#follow = true;
    this.#scrollToEnd();
  }

  /** A message has grown: draw it with the next frame. */
  update(message) {
    if (!this.#views.has(message)) return;
    this.#stale.add(message);
    this.#drawing ??= requestAnimationFrame(() => {
      this.#drawing = null;
      for (const stale of this.#stale) this.#draw(stale);
      this.#stale.clear();
      this.#scrollToEnd();
    });
  }

  #scrollToEnd() {
    if (this.#follow) this.#scroller.scrollTop = this.#scroller.scrollHeight;
  }

  #view(message, index, busy) {
    const mine = message.role === "user";
    const body = el("div", { class: mine ? "said" : "answer" });
    const foot = el("div", { class: "foot" });
    const node = el(
      "article", { class: `message ${mine ? "mine" : "theirs"}`, "aria-label": mine ? "You" : "Answer" },
      body, foot,
    );
    const view = { node, body, foot, index, busy, thoughts: null };
    if (!mine) view.text = body.appendChild(el("div", { class: "markdown" }));
    return view;
  }

  #draw(message) {
    const view = this.#views.get(message);
    if (view === undefined) return;
    if (message.role === "user") view.body.textContent = message.content;
    else this.#drawAnswer(message, view);
    this.#drawFoot(message, view);
  }

  #drawAnswer(message, view) {
    if (message.reasoning) {
      if (view.thoughts === null) {
        const text = el("div", { class: "thoughts" });
        view.body.prepend(el("details", {}, el("summary", {}, "Thoughts"), text));
        view.thoughts = text;
      }
      view.thoughts.textContent = message.reasoning;
    }
    renderMarkdown(view.text, message.content);
    const pending = view.busy && !message.finish && !message.error;
    view.node.classList.toggle("pending", pending);
    view.node.setAttribute("aria-busy", String(pending));
    if (message.error && !view.error) {
      view.error = el("p", { class: "problem", role: "alert" }, message.error.text);
      view.body.append(view.error);
    }
  }

  #drawFoot(message, view) {
    const pending = view.node.classList.contains("pending");
    if (pending || view.footDrawn) return;
    view.footDrawn = true;
    const mine = message.role === "user";
    const stats = mine ? [] : statPhrases(message).map(([text, title]) => el("span", { title }, text));
    const buttons = [];
    if (message.content) {
      const button = action("Copy", mine ? "Copy your message" : "Copy the answer", () => {
        copy(message.content, button);
      });
      buttons.push(button);
    }
    if (mine) {
      buttons.push(action("Edit", "Edit your message", () => this.#edit(message, view)));
    } else {
      const name = message.error ? "Try again" : "Regenerate";
      buttons.push(action(name, `${name}: ask for this answer anew`, () => {
        this.#actions.regenerate(view.index);
      }));
    }
    view.foot.replaceChildren(
      el("div", { class: "stats" }, ...stats), el("div", { class: "actions" }, ...buttons),
    );
  }

  #edit(message, view) {
    const box = el("textarea", { "aria-label": "Your message", rows: "3" });
    box.value = message.content;
    const back = () => {
      form.replaceWith(view.body);
      view.foot.hidden = false;
      view.foot.querySelector("button:last-of-type").focus();
    };
    const form = el(
      "form", {
        class: "editor",
        on: {
          submit: (event) => {
            event.preventDefault();
            if (box.value.trim()) this.#actions.edit(view.index, box.value.trim());
          },
          keydown: (event) => {
            if (event.key === "Escape") {
              event.stopPropagation();
              back();
            }
          },
        },
      },
      box,
      el(
        "div", { class: "dialog-row" },
        el("span", { class: "fine spring" }, "What follows is replaced."),
        el("button", { type: "button", class: "quiet", on: { click: back } }, "Cancel"),
        el("button", { type: "submit", class: "primary" }, "Send"),
      ),
    );
    view.body.replaceWith(form);
    view.foot.hidden = true;
    box.focus();
    box.setSelectionRange(box.value.length, box.value.length);
  }
}

function action(text, name, onClick) {
  return el(
    "button", { type: "button", class: "quiet small", "aria-label": name, on: { click: onClick } }, text,
  );
}

function welcome() {
  return el(
    "div", { class: "welcome" },
    el("h2", {}, "Ask the model something."),
    el("p", {}, "The answer comes as it is computed, a token at a time, in one batch with everybody else's."),
  );
}
