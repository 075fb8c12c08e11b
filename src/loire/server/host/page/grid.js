// The moving grid: rows are the slots of the batch, columns are steps, the latest at the right.

import { hatch, prepare, requestColor, theme } from "./paint.js";

const COLUMN = 13;
const GUTTER = 26;
const FEWEST_ROWS = 8;
const FOOT = 18;
const GAP = 2;

/** Draw the latest steps that fit; gives a function from a point of the canvas to words for it. */
export function drawGrid(canvas, batch) {
  const width = canvas.clientWidth;
  const columns = Math.max(1, Math.floor((width - GUTTER) / COLUMN));
  const steps = batch.steps.slice(-columns);
  const fewest = Math.min(FEWEST_ROWS, batch.engine.max_num_seqs);
  const rows = Math.max(fewest, ...steps.flatMap((step) => step.slots.map((s) => s.slot + 1)));
  const lane = laneHeight(rows);
  const context = prepare(canvas, width, rows * lane + FOOT);
  context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  context.textBaseline = "middle";
  const left = GUTTER + (columns - steps.length) * COLUMN;
  drawLanes(context, rows, lane, width);
  steps.forEach((step, index) => {
    for (const slot of step.slots) {
      drawCell(context, slot, left + index * COLUMN, slot.slot * lane, lane);
    }
  });
  if (lane >= 14) drawLabels(context, steps, left, lane);
  drawStepNumbers(context, steps, left, rows * lane + FOOT / 2 + 2);
  return (x, y) => {
    const step = steps[Math.floor((x - left) / COLUMN)];
    const slot = step?.slots.find((candidate) => candidate.slot === Math.floor(y / lane));
    return slot === undefined ? "" : `S${slot.seq + 1} in step ${step.step + 1}: ${doing(slot)}`;
  };
}

/** What a sequence did in a step. */
export function doing({ prefill, decode, ended }) {
  if (prefill === 0 && decode === 0) return "ended, holds its slot";
  const computed = prefill > 0 ? `prefill of ${prefill} tokens` : "decode";
  return ended ? `${computed}, its last token` : computed;
}

function laneHeight(rows) {
  if (rows <= 16) return 20;
  return rows <= 32 ? 14 : Math.max(3, 448 / rows);
}

function gapOf(lane) {
  return lane > 8 ? GAP : 1;
}

function drawLanes(context, rows, lane, width) {
  const { lane: color, muted } = theme();
  const every = [1, 2, 4, 8, 16, 32, 64].find((n) => n * lane >= 13) ?? 128;
  context.textAlign = "right";
  for (let row = 0; row < rows; row += 1) {
    context.fillStyle = color;
    context.fillRect(GUTTER, row * lane, width - GUTTER, lane - gapOf(lane));
    if (row % every === 0) {
      context.fillStyle = muted;
      context.fillText(String(row + 1), GUTTER - 7, row * lane + Math.max(lane - GAP, 10) / 2);
    }
  }
}

function drawCell(context, slot, x, y, lane) {
  const height = lane - gapOf(lane);
  const width = COLUMN - 1;
  const { ink, muted } = theme();
  if (slot.prefill === 0 && slot.decode === 0) {
    // It has ended, but its batch still holds the slot.
    context.fillStyle = muted;
    context.fillRect(x + width / 2 - 1, y + height / 2 - 1, 2.5, 2.5);
    return;
  }
  context.fillStyle = requestColor(slot.request);
  context.fillRect(x, y, width, height);
  if (slot.prefill > 0) hatch(context, x, y, width, height);
  if (slot.ended) {
    context.fillStyle = ink;
    context.fillRect(x + width - 3, y, 3, height);
  }
}

/** The sequence's name at the left end of what is seen of it, if there is room. */
function drawLabels(context, steps, left, lane) {
  const open = new Map(); // slot -> { seq, first, end }
  context.textAlign = "left";
  context.fillStyle = theme().label;
  const draw = ({ seq, first, end }, slot) => {
    const label = `S${seq + 1}`;
    if (context.measureText(label).width + 8 > (end - first) * COLUMN - 4) return;
    context.fillText(label, left + first * COLUMN + 5, slot * lane + (lane - GAP) / 2 + 0.5);
  };
  steps.forEach((step, index) => {
    for (const { slot, seq, prefill, decode } of step.slots) {
      // Names stand on plain colour: the hatch of prefill would cross them out.
      const plain = prefill === 0 && decode > 0;
      const run = open.get(slot);
      if (run && run.seq === seq && run.end === index && plain) {
        run.end = index + 1;
        continue;
      }
      if (run) draw(run, slot);
      if (plain) open.set(slot, { seq, first: index, end: index + 1 });
      else open.delete(slot);
    }
  });
  for (const [slot, run] of open) draw(run, slot);
}

function drawStepNumbers(context, steps, left, y) {
  context.fillStyle = theme().muted;
  context.textAlign = "center";
  steps.forEach((step, index) => {
    const number = step.step + 1;
    if (number % 10 === 0) context.fillText(String(number), left + (index + 0.5) * COLUMN, y);
  });
}
