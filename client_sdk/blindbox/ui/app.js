/*
 * The page for talking to a machine that has proved itself: it shows the proof, asks, and shows what comes.
 *
 * The proof, a model's answer and an error are all written by somebody else: everything that arrives becomes
 * text nodes, and nothing here makes HTML of a string. The conversation lives in this page's memory only.
 * Whatever the page asks for is answered by the local server of `__init__.py` beside it, by no other origin.
 */

const TOKEN_KEPT = "blindbox-token";
const PROOF = "page.json";
const EVIDENCE_HEADER = "blindbox-evidence-id";

const $ = (id) => document.getElementById(id);

/** An element with these properties and children; strings become text. */
function el(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Show or hide; `hidden` also takes an element out of the order of focus. */
function show(element, visible) {
  element.hidden = !visible;
}

// ── the local server ──────────────────────────────────────────────────────────────────────────────────────

/** The word that the terminal printed behind the `#`. It is kept for this tab, so that a reload has it. */
const token = (() => {
  const given = location.hash.slice(1);
  if (/^[\w-]{20,}$/.test(given)) {
    sessionStorage.setItem(TOKEN_KEPT, given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(TOKEN_KEPT) ?? "";
})();

/** What went wrong, in the words of whoever noticed. */
class Trouble extends Error {
  constructor(message, { code, kind, wait } = {}) {
    super(message);
    this.code = code ?? "";
    this.kind = kind ?? "";
    this.wait = wait ?? "";
  }
}

const GONE = "The local program does not answer. Is “blindbox ui” still running in its terminal?";
const NO_TOKEN = "Open the whole address that “blindbox ui” printed, with all that follows its #.";
const CUT = "The answer broke off before its end. What is above may be incomplete.";

async function call(path, { body, signal } = {}) {
  const headers = { Authorization: `Bearer ${token}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble(GONE);
  }
  const evidence = response.headers.get(EVIDENCE_HEADER);
  if (path !== PROOF && evidence && shown !== null && evidence !== shown) showProof();
  if (response.ok) return response;
  const trouble = await refusal(response);
  if (trouble.kind === "attestation_error" && shown !== null) showProof();
  throw trouble;
}

async function refusal(response) {
  let told = null;
  try {
    told = (await response.json()).error;
  } catch {
    // Told below by its status.
  }
  if (response.status === 401 && told?.code === "wrong-token") return new Trouble(NO_TOKEN, told);
  const message = told?.message ?? `The answer was HTTP ${response.status}, without an explanation.`;
  const wait = response.headers.get("Retry-After");
  return new Trouble(String(message), { code: told?.code, kind: told?.type, wait });
}

// ── the proof ─────────────────────────────────────────────────────────────────────────────────────────────

const VERDICTS = {
  accepted: ["good", "✔", "Proved"],
  simulated: ["bad", "✘", "Simulated: proves nothing"],
  refused: ["bad", "✘", "Refused"],
  "not judged": ["bad", "✘", "Not proved"],
};
const OUTCOMES = {
  passed: ["good", "✔"],
  failed: ["bad", "✘"],
  "not applicable": ["none", "–"],
  "not asked": ["open", "·"],
  "not reached": ["none", ""],
};

let shown = null; // the evidence that the page shows, by its id

/** Fetch the proof and show it. Only where it may be talked to does the machine get a conversation. */
async function showProof() {
  let told;
  try {
    told = await (await call(PROOF)).json();
  } catch (error) {
    $("proof").className = "bad";
    $("proof-word").textContent = "✘ No proof to show";
    $("proof-line").textContent = "";
    $("proof-body").replaceChildren(el("p", {}, error.message));
    $("proof-details").open = true;
    shown = ""; // so that the next answer asks for it again
    return false;
  }
  const { report } = told;
  const [kind, mark, word] = VERDICTS[report.verdict] ?? VERDICTS["not judged"];
  const good = report.verdict === "accepted" || report.verdict === "simulated";
  shown = report.machine?.evidence_id ?? "";
  document.title = `${word} · BlindBox`;
  show($("band"), report.simulated);
  $("where").textContent = report.origin;
  $("proof").className = kind;
  $("proof-word").replaceChildren(el("span", { className: "mark", ariaHidden: "true" }, mark), ` ${word}`);
  $("proof-line").replaceChildren(...proofLine(report));
  $("proof-body").replaceChildren(...proofBody(told));
  $("spoken").textContent = `${word}. ${report.summary}`;
  if (!good) {
    $("proof-details").open = true;
    stop();
    show($("composer"), false); // what was said before stays to be read
    show($("skip"), false);
    scrollTo(0, 0);
  }
  return good;
}

function proofLine({ machine, error }) {
  if (machine === null) return error ? [el("code", {}, error.code)] : [];
  const id = machine.evidence_id.slice(0, 16);
  const about = machine.platform === "simulated" ? "evidence " : `${machine.title} · evidence `;
  return [el("span", {}, about), el("code", { title: machine.evidence_id }, `${id}…`)];
}

function proofBody({ report, names, until, limits }) {
  const parts = [el("p", { className: "why" }, ...prose(report.summary))];
  if (report.machine) {
    const { machine } = report;
    const rows = [
      ["Checked", spokenTime(report.verified_at)],
      ["Relied on until", spokenTime(until)],
      ["Platform", `${machine.title} (${machine.platform})`],
      ["Program (measurement)", machine.measurement],
      ["Settings (digest)", machine.config_digest],
      ["Boot", machine.boot_id],
      ["Evidence", machine.evidence_id],
    ];
    const list = el("dl");
    for (const [name, value] of rows) list.append(el("dt", {}, name), el("dd", {}, ...prose(value)));
    parts.push(list);
    if (!report.simulated) {
      parts.push(el("h3", {}, "Who has to be honest"));
      parts.push(el("ul", {}, ...machine.trusts.map((one) => el("li", {}, ...prose(one)))));
      const open = limits.map(([what, why]) => el("li", {}, el("strong", {}, what), ` ${why}`));
      parts.push(el("details", {}, el("summary", {}, "What this does not prove"), el("ul", {}, ...open)));
    }
  }
  if (report.steps.length) parts.push(...proofSteps(report.steps, names));
  const save = el("button", { type: "button" }, "Save the proof as a file");
  save.addEventListener("click", () => download("proof.json", `${JSON.stringify(report, null, 2)}\n`));
  parts.push(el("p", { className: "save" }, save, " Anybody can judge it again: blindbox verify --offline."));
  return parts;
}

function proofSteps(steps, names) {
  const walked = new Map(steps.map((step) => [step.number, step]));
  const list = el("ol", { className: "steps" });
  for (const [number, name] of Object.entries(names)) {
    const step = walked.get(Number(number)) ?? { outcome: "not reached", detail: "", checks: [] };
    const [kind, sign] = OUTCOMES[step.outcome];
    const mark = el("span", { className: "mark", ariaHidden: "true" }, sign);
    const head = [
      el("span", { className: "number", ariaHidden: "true" }, number),
      el("span", { className: "name" }, name[0].toUpperCase() + name.slice(1)),
      el("span", { className: "outcome" }, mark, ` ${step.outcome}`),
    ];
    const item = el("li", { className: kind });
    if (step.checks.length || step.detail) {
      const body = el("div", { className: "checks" });
      if (step.detail) body.append(el("p", {}, ...prose(step.detail)));
      if (step.checks.length) body.append(el("ul", {}, ...step.checks.map(proofCheck)));
      item.append(el("details", { open: step.outcome === "failed" }, el("summary", {}, ...head), body));
    } else {
      item.append(el("div", { className: "summary" }, ...head));
    }
    list.append(item);
  }
  return [el("h3", {}, "The thirteen steps"), list];
}

function proofCheck(check) {
  const [kind, mark] = OUTCOMES[check.outcome];
  const about = el("p", {}, el("span", { className: "mark" }, mark), ` ${check.name}: ${check.outcome}`);
  const list = el("dl");
  for (const [name, value] of [["found", check.found], ["wanted", check.wanted], ["in", check.source]]) {
    if (value) list.append(el("dt", {}, name), el("dd", {}, ...prose(value)));
  }
  return el("li", { className: kind }, about, list);
}

/** A sentence; long values in hexadecimal within it may be broken anywhere. */
function prose(text) {
  return String(text)
    .split(/([0-9a-f]{16,})/)
    .map((part, at) => (at % 2 ? el("code", {}, part) : part));
}

function spokenTime(text) {
  const time = new Date(text);
  if (Number.isNaN(time.valueOf())) return String(text);
  return time.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  el("a", { href: url, download: name }).click();
  URL.revokeObjectURL(url);
}

// ── models and settings ───────────────────────────────────────────────────────────────────────────────────

const TUNED = "ft:"; // how the name of a caller's own model begins

async function showModels() {
  const { data } = await (await call("../v1/models")).json();
  const names = data.map((model) => String(model.id));
  if (!names.length) throw new Trouble("This machine has no model for you.");
  const before = $("model").value;
  const groups = [
    ["Models of this machine", names.filter((name) => !name.startsWith(TUNED))],
    ["Tuned by you", names.filter((name) => name.startsWith(TUNED))],
  ];
  const option = (id) => el("option", { value: id }, id.replace(TUNED, "Tuned: "));
  $("model").replaceChildren(
    ...groups
      .filter(([, ids]) => ids.length)
      .map(([label, ids]) => el("optgroup", { label }, ...ids.map(option))),
  );
  if (names.includes(before)) $("model").value = before;
}

/** What the caller has set; an empty field is left out, and so left to the model. */
function settings() {
  const fields = $("settings").elements;
  const wish = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (fields[name].value !== "") wish[name] = fields[name].valueAsNumber;
  }
  const stops = fields.stop.value.split("\n").filter((line) => line !== "");
  if (stops.length) wish.stop = stops;
  return wish;
}

function openSettings(open) {
  show($("settings"), open);
  $("settings-button").ariaExpanded = String(open);
}

// ── a conversation ────────────────────────────────────────────────────────────────────────────────────────

let turns = []; // {question, answer, card, …}: what was asked, and what came
let asking = null; // the AbortController of the answer that is being written

function messages(turn) {
  const system = $("settings").elements.system.value.trim();
  const said = system ? [{ role: "system", content: system }] : [];
  for (const { question, answer } of turns.slice(0, turns.indexOf(turn))) {
    // What never got an answer was not said, as far as the model is concerned.
    if (answer) said.push({ role: "user", content: question }, { role: "assistant", content: answer });
  }
  return [...said, { role: "user", content: turn.question }];
}

function begin(question) {
  const body = el("div", { className: "text", dir: "auto" });
  const facts = el("footer");
  const who = el("h3");
  const turn = { question, answer: "", body, facts, who };
  turn.card = el("article", { className: "answer" }, who, body, facts);
  const said = el("div", { className: "text", dir: "auto" }, question);
  $("turns").append(el("article", { className: "question" }, el("h3", {}, "You"), said), turn.card);
  show($("empty"), false);
  turns.at(-1)?.again?.remove();
  turns.push(turn);
  return turn;
}

/** Ask the model, and write down what comes. Every way out ends in `finish`. */
async function ask(turn) {
  if ($("composer").hidden) return; // the machine is not proved any more
  const control = (asking = new AbortController());
  const model = $("model").value;
  const writer = new Writer(turn.body);
  const speaker = new Speaker();
  const began = performance.now();
  let first = null;
  let last = began;
  let usage = null;
  let reason = null;
  let trouble = null;
  turn.answer = "";
  turn.who.textContent = model;
  turn.facts.replaceChildren();
  turn.card.classList.add("coming");
  turn.card.ariaBusy = "true";
  busy(true);
  follow();
  $("spoken").textContent = "The model is answering.";
  const asStream = { stream: true, stream_options: { include_usage: true } };
  const body = { model, messages: messages(turn), ...asStream, ...settings() };
  try {
    const response = await call("../v1/chat/completions", { body, signal: control.signal });
    for await (const event of events(response.body)) {
      if (event.error) throw new Trouble(String(event.error.message), { code: event.error.code });
      usage = event.usage ?? usage;
      const choice = event.choices?.[0];
      reason = choice?.finish_reason ?? reason;
      const piece = choice?.delta?.content;
      if (typeof piece !== "string" || !piece) continue;
      last = performance.now();
      first ??= last;
      turn.answer += piece;
      writer.write(piece);
      speaker.hear(piece);
    }
  } catch (error) {
    if (error.name === "AbortError") reason = "stopped";
    else trouble = error instanceof Trouble ? error : new Trouble(CUT);
  }
  writer.end();
  if (asking === control) {
    asking = null;
    busy(false);
  }
  speaker.end(trouble ? trouble.message : reason === "stopped" ? "Stopped." : "");
  finish(turn, { reason, trouble, usage, first: first && first - began, seconds: (last - began) / 1000 });
}

const REASONS = {
  stop: "",
  length: "cut at the most new tokens that were asked for",
  stopped: "stopped by you",
  content_filter: "held back by a filter",
};

function finish(turn, { reason, trouble, usage, first, seconds }) {
  turn.card.classList.remove("coming");
  turn.card.ariaBusy = "false";
  const facts = [];
  const tokens = usage?.completion_tokens;
  if (tokens) facts.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
  if (tokens && seconds > 0) facts.push(`${(tokens / seconds).toFixed(1)} tokens/s`);
  if (first !== null) facts.push(`the first after ${(first / 1000).toFixed(2)} s`);
  if (reason && REASONS[reason] !== "") facts.push(REASONS[reason] ?? reason);
  const line = el("p", { className: "facts" }, facts.join(" · "));
  if (trouble) {
    const wait = trouble.wait && !/again/i.test(trouble.message) ? ` Try again in ${trouble.wait} s.` : "";
    const code = trouble.code ? [" ", el("code", {}, trouble.code)] : [];
    turn.facts.append(el("p", { className: "trouble", role: "alert" }, trouble.message, wait, ...code));
  }
  turn.facts.append(line);
  if (turn.answer) turn.facts.append(copyButton("Copy", () => turn.answer));
  if (turn === turns.at(-1)) {
    turn.again = el("button", { type: "button" }, trouble ? "Try again" : "Ask again");
    turn.again.addEventListener("click", () => {
      if (asking) return;
      turn.body.replaceChildren();
      $("prompt").focus();
      ask(turn);
    });
    turn.facts.append(turn.again);
  }
  follow();
}

function stop() {
  asking?.abort();
}

function clear() {
  stop();
  turns = [];
  $("turns").replaceChildren();
  show($("empty"), true);
  $("clear").disabled = true;
  $("spoken").textContent = "The conversation is cleared.";
  $("prompt").focus();
}

function busy(is) {
  show($("send"), !is);
  show($("stop"), is);
  $("clear").disabled = !turns.length;
}

function copyButton(label, text) {
  const button = el("button", { type: "button" }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed here";
    }
    $("spoken").textContent = button.textContent;
    setTimeout(() => (button.textContent = label), 2000);
  });
  return button;
}

/** The `data:` of each server-sent event (WHATWG HTML §9.2). An answer that lacks its end raises. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Trouble(CUT);
    held += value;
    const ready = held.split(/\r?\n\r?\n/);
    held = ready.pop();
    for (const event of ready) {
      const data = event
        .split(/\r?\n/)
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).replace(/^ /, ""))
        .join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

// ── how an answer is written ──────────────────────────────────────────────────────────────────────────────

/** Keep the end in sight, unless the reader has scrolled away from it. */
let following = true;
function follow() {
  if (following) scrollTo(0, document.documentElement.scrollHeight);
}

/** Writes an answer as it comes. Blocks that are complete are not touched again. */
export class Writer {
  constructor(into) {
    this.into = into;
    this.text = ""; // of the block that is still open, and what follows
    this.open = [];
    this.frame = 0;
  }

  write(piece) {
    this.text += piece;
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = 0;
    for (const node of this.open) node.remove();
    const blocks = split(this.text);
    const nodes = blocks.map(block);
    this.into.append(...nodes);
    this.open = nodes.slice(-1);
    this.text = blocks.at(-1)?.source ?? "";
    follow();
  }

  end() {
    cancelAnimationFrame(this.frame);
    this.draw();
  }
}

/** Paragraphs and fenced code. `source` is what a block was read from, so that the last can be read again. */
function split(whole) {
  const blocks = [];
  for (let rest = whole; rest; ) {
    const blank = rest.match(/^(?:[ \t]*\n)+/)?.[0].length;
    if (blank) {
      if (blocks.length) blocks.at(-1).source += rest.slice(0, blank);
      rest = rest.slice(blank);
      continue;
    }
    const fence = rest.match(/^[ \t]*(`{3,}|~{3,})([^\n`]*)(?=\n)/);
    const inside = rest.slice(fence?.[0].length ?? 0);
    // Of code, its closing fence is the end; of a paragraph, an empty line or the beginning of code.
    const end = fence
      ? inside.match(new RegExp(`\\n[ \\t]*${fence[1]}[ \\t]*(?=\\n|$)`))
      : inside.match(/\n(?=[ \t]*(?:\n|`{3,}|~{3,}))/);
    const body = inside.slice(0, end?.index);
    const size = rest.length - inside.length + (end ? end.index + end[0].length : inside.length);
    const text = fence ? body.slice(1) : body.trim();
    blocks.push({ language: fence?.[2].trim().slice(0, 40), text, source: rest.slice(0, size) });
    rest = rest.slice(size);
  }
  return blocks;
}

function block({ language, text }) {
  if (language !== undefined) {
    const head = el("p", {}, language, copyButton("Copy", () => text));
    const reached = { tabIndex: 0, role: "region", ariaLabel: "Code" }; // or a keyboard could not scroll it
    return el("div", { className: "code" }, head, el("pre", reached, el("code", {}, text)));
  }
  const parts = text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((part, at) => {
    if (at % 2 === 0) return part;
    return part[0] === "`" ? el("code", {}, part.slice(1, -1)) : el("strong", {}, part.slice(2, -2));
  });
  return el("p", { dir: "auto" }, ...parts);
}

/** Reads an answer aloud to who cannot see it: by sentences, for single words would interrupt each other. */
class Speaker {
  constructor() {
    this.text = "";
    this.at = performance.now();
  }

  hear(piece) {
    this.text += piece;
    const end = Math.max(...[". ", "! ", "? ", "\n"].map((mark) => this.text.lastIndexOf(mark)));
    if (end < 0 || performance.now() - this.at < 1500) return;
    this.say(this.text.slice(0, end + 1));
    this.text = this.text.slice(end + 1);
  }

  say(text) {
    this.at = performance.now();
    $("spoken").textContent = text;
  }

  end(more) {
    const rest = `${this.text} ${more}`.trim();
    if (rest) this.say(rest);
  }
}

// ── what the reader does ──────────────────────────────────────────────────────────────────────────────────

function grow() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight + 2, innerHeight * 0.35)}px`;
}

function trouble(error) {
  const again = el("button", { type: "button" }, "Try again");
  again.addEventListener("click", prepare);
  const why = error instanceof Trouble ? error.message : "The machine’s list of models cannot be read.";
  $("trouble").replaceChildren(why, " ", again);
  show($("trouble"), true);
}

async function prepare() {
  show($("trouble"), false);
  try {
    await showModels();
  } catch (error) {
    trouble(error);
  }
}

function listen() {
  const prompt = $("prompt");
  $("composer").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!$("model").value) await prepare();
    const question = prompt.value.trim();
    if (!question || asking || !$("model").value) return;
    prompt.value = "";
    grow();
    prompt.focus();
    following = true;
    ask(begin(question));
  });
  // A field that is not as it should be cannot be shown while it is hidden.
  $("settings").addEventListener("invalid", () => openSettings(true), true);
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("composer").requestSubmit();
  });
  prompt.addEventListener("input", grow);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) stop();
  });
  $("stop").addEventListener("click", () => {
    stop();
    prompt.focus();
  });
  $("clear").addEventListener("click", clear);
  $("settings-button").addEventListener("click", () => openSettings($("settings").hidden));
  $("skip").addEventListener("click", (event) => {
    event.preventDefault();
    prompt.focus();
  });
  addEventListener("scroll", () => {
    const page = document.documentElement;
    following = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
  });
  // Whoever comes back may have tuned a model meanwhile.
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && !asking && !$("composer").hidden) showModels().catch(() => {});
  });
}

if (await showProof()) {
  show($("chat"), true);
  listen();
  $("prompt").focus({ preventScroll: true });
  await prepare();
}
