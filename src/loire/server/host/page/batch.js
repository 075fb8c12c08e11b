// What the page knows of the batch: the latest steps, and rates over the last seconds.

export const MAX_COLUMNS = 240;
const RATE_WINDOW_S = 3;

export class Batch {
  constructor(engine) {
    this.engine = engine;
    this.steps = []; // the latest ones, the oldest first
    this.idle = true;
    this.preemptions = 0;
    this.hitTokens = 0;
    this.promptTokens = 0;
    this.windows = []; // { time, seconds, prefill, decode } per event
  }

  get last() {
    return this.steps.at(-1) ?? null;
  }

  /** Take in an event with steps. */
  add({ steps, totals }) {
    const previous = this.last?.time_s ?? -Infinity;
    const began = Math.max(previous, steps[0].time_s - steps[0].compute_s);
    const time = steps.at(-1).time_s;
    this.windows.push({
      time,
      // After a pause the time before the first step is no work.
      seconds: this.idle ? time - (steps[0].time_s - steps[0].compute_s) : time - began,
      prefill: totals.prefill_tokens,
      decode: totals.decode_tokens,
    });
    this.windows = this.windows.filter((window) => window.time > time - RATE_WINDOW_S);
    this.preemptions += totals.preemptions;
    this.hitTokens += totals.prefix_hit_tokens;
    this.promptTokens += totals.prefill_tokens + totals.prefix_hit_tokens;
    this.steps = [...this.steps, ...steps].slice(-MAX_COLUMNS);
    this.idle = false;
  }

  setIdle() {
    this.idle = true;
    this.windows = [];
  }

  /** Tokens per second of the given kind, "prefill" or "decode". */
  rate(kind) {
    const seconds = sum(this.windows.map((window) => window.seconds));
    return seconds > 0 ? sum(this.windows.map((window) => window[kind])) / seconds : 0;
  }

  /** Milliseconds per step, averaged over the latest ones; null without any. */
  get stepMs() {
    const latest = this.steps.slice(-16);
    return latest.length ? (1000 * sum(latest.map((step) => step.compute_s))) / latest.length : null;
  }

  /** Part of the prompts' tokens that was found in the cache; null without prompts. */
  get hitShare() {
    return this.promptTokens ? this.hitTokens / this.promptTokens : null;
  }
}

function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}
