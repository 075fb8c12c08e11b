// Markdown as elements, built node by node: whatever a model writes, it cannot become markup.
//
// The part of CommonMark that models write: headings, lists, fenced code, quotes, tables, rules,
// emphasis, inline code, links. HTML and images stay text. Lines are broken where the model broke
// them.

import { copy, el } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const TABLE_RULE = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const MAX_DEPTH = 12;

/**
 * Show Markdown in an element. Called again with a longer text, as while it streams, it keeps the
 * elements of the blocks that did not change, and with them the reader's selection.
 */
export function renderMarkdown(target, text) {
  const blocks = split(text.replace(/\r\n?/g, "\n").split("\n"));
  let index = 0;
  for (const block of blocks) {
    const source = block.kind + block.lines.join("\n");
    const present = target.children[index];
    if (present?.source !== source) {
      const node = build(block, 0);
      node.source = source;
      if (present) present.replaceWith(node);
      else target.append(node);
    }
    index += 1;
  }
  while (target.children.length > index) target.lastElementChild.remove();
}

/** Lines as blocks: { kind, lines }, the markers still in the lines. */
function split(lines) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (line.trim() === "") {
      at += 1;
      continue;
    }
    const [kind, end] = blockAt(lines, at);
    blocks.push({ kind, lines: lines.slice(at, end) });
    at = end;
  }
  return blocks;
}

/** The kind of the block that begins at a line that is not blank, and where it ends. */
function blockAt(lines, at) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return ["code", endOfFence(lines, at, fence[1])];
  if (HEADING.test(line)) return ["heading", at + 1];
  if (RULE.test(line)) return ["rule", at + 1];
  if (QUOTE.test(line)) return ["quote", endWhile(lines, at, (next) => QUOTE.test(next))];
  if (ITEM.test(line)) return ["list", endOfList(lines, at)];
  if (beginsTable(lines, at)) {
    return ["table", endWhile(lines, at, (next) => next.includes("|") && next.trim() !== "")];
  }
  let end = at + 1;
  while (end < lines.length && lines[end].trim() !== "" && !interrupts(lines, end)) end += 1;
  return ["paragraph", end];
}

function endWhile(lines, at, belongs) {
  let end = at + 1;
  while (end < lines.length && belongs(lines[end])) end += 1;
  return end;
}

function interrupts(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  // "1986." at the beginning of a line is a year, not a list; lists begin with 1.
  const beginsList = item !== null && item[4] !== "" && (!/\d/.test(item[2]) || /^1\D/.test(item[2]));
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)
    || beginsList || beginsTable(lines, at);
}

function beginsTable(lines, at) {
  return lines[at].includes("|") && at + 1 < lines.length && TABLE_RULE.test(lines[at + 1])
    && cells(lines[at]).length === cells(lines[at + 1]).length;
}

/** The line after the closing fence; all lines, if it has not come yet. */
function endOfFence(lines, at, fence) {
  for (let end = at + 1; end < lines.length; end += 1) {
    const closing = /^ {0,3}(`{3,}|~{3,})\s*$/.exec(lines[end]);
    if (closing && closing[1][0] === fence[0] && closing[1].length >= fence.length) return end + 1;
  }
  return lines.length;
}

/** A list goes on over its items, what is indented under them, and single blank lines. */
function endOfList(lines, at) {
  const [, indent, marker] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(marker);
  let end = at + 1;
  while (end < lines.length) {
    const blank = lines[end].trim() === "";
    const next = blank ? lines[end + 1] : lines[end];
    if (next === undefined || next.trim() === "") break;
    const item = ITEM.exec(next);
    const deeper = next.search(/\S/) > indent.length;
    const sibling = item !== null && /\d/.test(item[2]) === ordered && !RULE.test(next);
    if (!deeper && !sibling && (blank || interrupts(lines, end))) break;
    end += blank ? 2 : 1;
  }
  return end;
}

function build(block, depth) {
  const { kind, lines } = block;
  switch (kind) {
    case "code":
      return codeBlock(lines);
    case "heading": {
      const [, marks, text] = HEADING.exec(lines[0]);
      // The page's own headings come before those of an answer.
      return el(`h${Math.min(marks.length + 2, 6)}`, {}, ...inline(text));
    }
    case "rule":
      return el("hr");
    case "quote":
      return container("blockquote", lines.map((line) => QUOTE.exec(line)[1]), depth);
    case "list":
      return list(lines, depth);
    case "table":
      return table(lines);
    default:
      return el("p", {}, ...inline(lines.map((line) => line.trim()).join("\n")));
  }
}

function container(tag, lines, depth) {
  const node = el(tag);
  // Beyond that nobody nests on purpose.
  if (depth >= MAX_DEPTH) node.append(lines.join("\n"));
  else node.append(...split(lines).map((block) => build(block, depth + 1)));
  return node;
}

function list(lines, depth) {
  const [, outer, firstMarker] = ITEM.exec(lines[0]);
  const ordered = /\d/.test(firstMarker);
  const items = [];
  let loose = false;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= outer.length + 1) {
      items.push({ width: item[1].length + item[2].length + 1, lines: [item[4]] });
    } else {
      const { width, lines: inner } = items.at(-1);
      const indent = Math.min(Math.max(line.search(/\S/), 0), width);
      inner.push(line.slice(indent));
      loose ||= line.trim() === "";
    }
  }
  const start = ordered ? Number.parseInt(firstMarker, 10) : 1;
  const node = el(ordered ? "ol" : "ul", { start: start === 1 ? null : start });
  for (const item of items) {
    const entry = container("li", item.lines, depth);
    const only = entry.firstElementChild;
    // Tight items hold their text without a paragraph around it.
    if (!loose && only?.tagName === "P") only.replaceWith(...only.childNodes);
    node.append(entry);
  }
  return node;
}

function codeBlock(lines) {
  const [, fence, language] = FENCE.exec(lines[0]);
  const closed = lines.length > 1 && endOfFence(lines, 0, fence) === lines.length
    && /^ {0,3}(`{3,}|~{3,})\s*$/.test(lines.at(-1));
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const button = el("button", { type: "button", class: "quiet small" }, "Copy");
  button.setAttribute("aria-label", language ? `Copy the ${language} code` : "Copy the code");
  button.addEventListener("click", () => copy(text, button));
  return el(
    "div", { class: "code" },
    el("div", { class: "code-bar" }, el("span", {}, language || "text"), button),
    el("pre", { tabindex: "0" }, el("code", {}, text)),
  );
}

function table(lines) {
  const [head, rule, ...body] = lines.map(cells);
  const align = rule.map((cell) => {
    if (!cell.endsWith(":")) return null;
    return cell.startsWith(":") ? "centre" : "right";
  });
  const row = (tag, texts) => el(
    "tr", {}, ...head.map((_, i) => el(tag, { class: align[i] }, ...inline(texts[i] ?? ""))),
  );
  return el(
    "div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" },
    el(
      "table", {},
      el("thead", {}, row("th", head)),
      el("tbody", {}, ...body.map((texts) => row("td", texts))),
    ),
  );
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

// Emphasis must not begin before a space or end after one; "_" not inside a word.
const INLINE = new RegExp(
  [
    /(?<escape>\\[\\`*_{}[\]()#+\-.!~|<>])/,
    /(?<ticks>`+)(?<code>[^`]|[^`].*?[^`])\k<ticks>(?!`)/,
    /\[(?<label>(?:[^\[\]\\]|\\.)*)\]\((?<url>[^\s()]*(?:\([^\s()]*\)[^\s()]*)*)(?:\s+"[^"]*")?\)/,
    /(?<bare>https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]*_])/,
    /(?<bold>\*\*|(?<![\p{L}\p{N}])__)(?=\S)(?<strong>(?:(?!\k<bold>).)*?\S)\k<bold>(?!\*)/,
    /~~(?=\S)(?<struck>.*?\S)~~/,
    /\*(?=[^\s*])(?<starred>(?:\*\*[^*]+\*\*|[^*])*?[^\s*])\*(?!\*)/,
    /(?<![\p{L}\p{N}_])_(?=[^\s_])(?<scored>[^_]*?[^\s_])_(?![\p{L}\p{N}_])/,
    /(?<line>\n)/,
  ].map((pattern) => pattern.source).join("|"),
  "gsu",
);

function inline(text, depth = 0) {
  if (depth >= MAX_DEPTH) return [text];
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    const node = inlineNode(match.groups, depth + 1);
    if (node === null) continue;
    if (match.index > end) nodes.push(text.slice(end, match.index));
    nodes.push(node);
    end = match.index + match[0].length;
  }
  if (end < text.length) nodes.push(text.slice(end));
  return nodes;
}

function inlineNode(found, depth) {
  if (found.escape) return found.escape.slice(1);
  if (found.code) return el("code", {}, found.code.replace(/^ (.+) $/s, "$1"));
  if (found.bare) return link(found.bare, [found.bare]);
  if (found.strong) return el("strong", {}, ...inline(found.strong, depth));
  if (found.struck) return el("s", {}, ...inline(found.struck, depth));
  const emphasized = found.starred ?? found.scored;
  if (emphasized) return el("em", {}, ...inline(emphasized, depth));
  if (found.line) return el("br");
  return found.url ? link(found.url, inline(found.label, depth)) : null;
}

/** A link, only to the web; null for any other address, so that its source stays to be read. */
function link(address, children) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (url.protocol !== "https:" && url.protocol !== "http:") return null;
  return el(
    "a", { href: url.href, rel: "noopener noreferrer nofollow", target: "_blank" }, ...children,
  );
}
