// The panel beside the chat: follows the engine's steps while somebody looks, and draws them.

import { KEY_CHANGE, ServerError, events, request, savedKey } from "./api.js";
import { Batch } from "./batch.js";
import { drawBlocks } from "./blocks.js";
import { byId, el } from "./dom.js";
import { doing, drawGrid } from "./grid.js";
import { onThemeChange } from "./paint.js";
import { askForKey } from "./settings.js";

const RETRY_MS = 3000;
const WORDS_EVERY_MS = 2000;
const OPEN = "loire.live";
/** The policy under which slots are free only when their whole batch has ended. */
const WHOLE_BATCHES = "static";

const narrow = matchMedia("(max-width: 759px)");
const panel = byId("live");
const opener = byId("open-live");

let batch = null;
let following = null; // AbortController of the stream
let paused = false;
let drawing = null;
let describeCell = () => "";
let wordsAt = 0;

/** Follow the stream for as long as the panel is open and the page is seen. */
async function follow() {
  const controller = new AbortController();
  following = controller;
  const { signal } = controller;
  while (!signal.aborted) {
    try {
      const key = savedKey("admin") || savedKey();
      for await (const news of events(await request("admin/live", { signal, key }))) take(news);
      throw new ServerError(0, "The stream of steps ended.");
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof ServerError)) throw error;
      if (showProblem(error)) return;
    }
    await new Promise((resolve) => { setTimeout(resolve, RETRY_MS); });
  }
}

/** Say why there is no picture; true if it needs a key, so that trying again is no use. */
function showProblem(error) {
  const needsKey = error.status === 401 || error.status === 403;
  byId("live-problem-text").textContent = error.explanation;
  byId("live-key").hidden = !needsKey;
  // That somebody may not look is no alarm.
  byId("live-problem").classList.toggle("calm", needsKey);
  byId("live-problem").hidden = false;
  panel.dataset.state = "down";
  return needsKey;
}

function take(news) {
  byId("live-problem").hidden = true;
  panel.dataset.state = "up";
  if (news.engine) {
    batch = new Batch(news.engine);
    panel.classList.add("known");
    byId("live-engine").textContent = describe(news.engine);
    byId("held-sign").hidden = news.engine.policy !== WHOLE_BATCHES;
  }
  if (news.steps) batch.add(news);
  if (news.adapters) showAdapters(news.adapters);
  if (news.idle) batch.setIdle();
  schedule();
}

function describe(engine) {
  const caching = engine.prefix_caching ? ", prefix caching" : "";
  return `Policy ${engine.policy}${caching}; up to ${engine.max_num_seqs} sequences and `
    + `${engine.max_num_batched_tokens.toLocaleString("en")} tokens per step.`;
}

function showAdapters(adapters) {
  const number = (count) => count.toLocaleString("en");
  byId("live-adapters").hidden = false;
  show("live-adapters", `${number(adapters.named)} adapters, ${number(adapters.num_resident)} in `
    + `memory (${rounded(adapters.num_bytes / 1e6)} MB): ${number(adapters.hits)} hits, `
    + `${number(adapters.loads)} loads, ${number(adapters.evictions)} evictions.`);
}

function schedule() {
  if (paused || batch === null || panel.hidden) return;
  drawing ??= requestAnimationFrame(() => {
    drawing = null;
    if (panel.hidden) return;
    describeCell = drawGrid(byId("grid"), batch);
    byId("blocks-scale").textContent = drawBlocks(byId("blocks"), batch);
    showFigures();
    showWords();
  });
}

function showFigures() {
  const step = batch.last;
  const running = batch.idle ? 0 : step?.running ?? 0;
  const waiting = batch.idle ? 0 : step?.waiting ?? 0;
  show("decode-rate", rounded(batch.rate("decode")));
  show("prefill-rate", rounded(batch.rate("prefill")));
  show("running", String(running));
  show("waiting", String(waiting));
  show("step-time", batch.stepMs === null ? "–" : rounded(batch.stepMs));
  show("hits", batch.hitShare === null ? "–" : String(Math.round(100 * batch.hitShare)));
  show("preemptions", batch.preemptions.toLocaleString("en"));
  show("kv-use", step === null ? "–" : rounded((100 * inUse(step)) / batch.engine.num_blocks));
  byId("blocks-counts").textContent = step === null ? "" : counts(step);
}

function inUse(step) {
  return batch.idle ? 0 : step.in_use;
}

function counts(step) {
  const text = (count) => count.toLocaleString("en");
  if (batch.idle) return "nothing in use";
  return `${text(step.in_use)} in use · ${text(step.cached)} cached · ${text(step.free)} free`;
}

function show(id, text) {
  const node = byId(id);
  if (node.textContent !== text) node.textContent = text;
}

function rounded(number) {
  return number > 0 && number < 10 ? number.toFixed(1) : Math.round(number).toLocaleString("en");
}

/** What the pictures show, for those who do not see them; not so often that nobody can follow. */
function showWords() {
  const now = performance.now();
  if (now - wordsAt < WORDS_EVERY_MS && !batch.idle) return;
  wordsAt = now;
  const step = batch.last;
  const words = batch.idle || step === null
    ? "Nothing is computed at the moment."
    : `${step.running} sequences run, ${step.waiting} wait, in step ${step.step + 1}.`;
  byId("grid").setAttribute("aria-label", `Slots of the batch over the latest steps. ${words}`);
  byId("blocks").setAttribute("aria-label", `Map of the KV blocks. ${byId("blocks-counts").textContent}`);
  if (byId("live-table").open) showTable(batch.idle ? [] : step?.slots ?? []);
}

function showTable(slots) {
  const row = (slot) => el(
    "tr", {},
    ...[
      slot.slot + 1, `S${slot.seq + 1}`, doing(slot), slot.blocks,
    ].map((cell) => el("td", {}, String(cell))),
  );
  byId("live-rows").replaceChildren(...[...slots].sort((a, b) => a.slot - b.slot).map(row));
}

function setOpen(open) {
  panel.hidden = !open;
  document.body.classList.toggle("with-live", open);
  opener.setAttribute("aria-expanded", String(open));
  cover();
  update();
}

/** Where the panel lies over the chat, the chat cannot be reached. */
function cover() {
  document.querySelector("main").inert = !panel.hidden && narrow.matches;
}

/** Nothing is asked of the server while nobody looks. */
function update() {
  const wanted = !panel.hidden && document.visibilityState === "visible";
  if (wanted && following === null) {
    follow();
  } else if (!wanted && following !== null) {
    following.abort();
    following = null;
  }
}

opener.addEventListener("click", () => {
  setOpen(panel.hidden);
  localStorage.setItem(OPEN, panel.hidden ? "closed" : "open");
});
byId("close-live").addEventListener("click", () => {
  setOpen(false);
  localStorage.setItem(OPEN, "closed");
  opener.focus();
});
byId("pause-live").addEventListener("click", (event) => {
  paused = !paused;
  event.currentTarget.textContent = paused ? "Go on" : "Pause";
  schedule();
});
byId("live-key").addEventListener("click", () => {
  askForKey("The picture shows everybody's requests, so it needs an admin key.", "admin");
});
document.addEventListener(KEY_CHANGE, () => {
  following?.abort();
  following = null;
  update();
});
byId("live-table").addEventListener("toggle", () => {
  wordsAt = 0;
  schedule();
});
byId("grid").addEventListener("pointermove", (event) => {
  const words = describeCell(event.offsetX, event.offsetY);
  if (event.currentTarget.title !== words) event.currentTarget.title = words;
});
document.addEventListener("visibilitychange", update);
new ResizeObserver(schedule).observe(panel);
onThemeChange(schedule);
narrow.addEventListener("change", () => setOpen(!narrow.matches && !panel.hidden));
const wide = matchMedia("(min-width: 1100px)").matches;
setOpen(wide && localStorage.getItem(OPEN) !== "closed");
