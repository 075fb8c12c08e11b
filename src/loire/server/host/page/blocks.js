// The KV blocks as a map: each cell one block or, in a large pool, as many as it must be.

import { hatch, prepare, requestColor, theme } from "./paint.js";

const CELL = 12;
const ROWS = 9;
/** The used part may fill that much of the map before cells stand for twice as many blocks. */
const FULLEST = 0.8;

/** Draw the state after the latest step; what a cell stands for, in words. */
export function drawBlocks(canvas, batch) {
  const width = canvas.clientWidth;
  const perRow = Math.max(1, Math.floor((width + 2) / CELL));
  const { num_blocks: numBlocks } = batch.engine;
  const segments = segmentsOf(batch);
  const used = segments.reduce((total, segment) => total + segment.blocks, 0);
  const scale = scaleFor(used, numBlocks, perRow * ROWS);
  const cells = Math.min(perRow * ROWS, Math.ceil(numBlocks / scale));
  const context = prepare(canvas, width, Math.ceil(cells / perRow) * CELL);
  let segment = 0;
  let end = segments[0]?.blocks ?? 0;
  for (let cell = 0; cell < cells; cell += 1) {
    const middle = (cell + 0.5) * scale;
    while (segment < segments.length && end <= middle) {
      segment += 1;
      end += segments[segment]?.blocks ?? 0;
    }
    const x = (cell % perRow) * CELL;
    const y = Math.floor(cell / perRow) * CELL;
    drawCell(context, x, y, segments[segment]);
  }
  const each = scale === 1 ? "A cell is a block" : `A cell is ${scale} blocks`;
  const tokens = `${(scale * batch.engine.block_size).toLocaleString("en")} tokens`;
  const rest = numBlocks - cells * scale;
  const more = rest > 0 ? `; free and not drawn: ${rest.toLocaleString("en")} more` : "";
  return `${each} of ${tokens}${more}.`;
}

/** Cells stand for the fewest blocks with which the used part leaves some of the map free. */
function scaleFor(used, numBlocks, cells) {
  if (numBlocks <= cells) return 1;
  let scale = 1;
  while (used > FULLEST * cells * scale && numBlocks > cells * scale) scale *= 2;
  return scale;
}

/** What the blocks hold, in order: those of each sequence, shared ones, cached ones. */
function segmentsOf(batch) {
  const step = batch.last;
  if (step === null) return [];
  const cached = { kind: "cached", blocks: step.cached };
  // Requests that were given up left their blocks after the latest step; full ones are cached now.
  if (batch.idle) return [{ kind: "cached", blocks: step.cached + step.in_use }];
  const owned = step.slots
    .filter((slot) => slot.blocks > 0)
    .sort((a, b) => a.slot - b.slot)
    .map((slot) => ({ kind: "request", request: slot.request, blocks: slot.blocks }));
  const total = owned.reduce((sum, segment) => sum + segment.blocks, 0);
  const shared = { kind: "shared", blocks: Math.max(0, step.in_use - total) };
  return [...owned, shared, cached].filter((segment) => segment.blocks > 0);
}

function drawCell(context, x, y, segment) {
  const colors = theme();
  const size = CELL - 2;
  if (segment === undefined) {
    context.strokeStyle = colors.edge;
    context.globalAlpha = 0.4;
    context.lineWidth = 1;
    context.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
    context.globalAlpha = 1;
    return;
  }
  context.fillStyle = segment.kind === "request" ? requestColor(segment.request) : colors[segment.kind];
  if (segment.kind === "cached") {
    context.fillRect(x + 3, y + 3, size - 6, size - 6);
    context.strokeStyle = colors.cached;
    context.lineWidth = 1;
    context.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
    return;
  }
  context.fillRect(x, y, size, size);
  if (segment.kind === "shared") hatch(context, x, y, size, size);
}
