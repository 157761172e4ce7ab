"use strict";
const $ = (id) => document.getElementById(id);
const MASK = 0;  // The entry of masks in trace.texts.
const calm = matchMedia("(prefers-reduced-motion: reduce)");

// A trace, its last frame, and the last frame that is expected of one that still grows.
let trace, last = 0, planned = 0, leftName = "";
// What is shown: a sample, the cells of its frame `at`, and the positions marked as new.
let number = 0, at = 0, cells = [], spans = [], final = [], steps = [], given = new Set(), fresh = new Set();

function element(tag, className, text = "") {
  return Object.assign(document.createElement(tag), {className, textContent: text});
}

// ---- Samples --------------------------------------------------------------------------------

// Undoes the packing: for each step [position, cell before, cell after]. Steps run both ways.
function unpack(sample) {
  const now = [...sample.start];
  const unpacked = [[]];
  for (const flat of sample.steps) {
    const changes = [];
    for (let j = 0, i = 0; j < flat.length; j += 2) {
      i += flat[j];
      changes.push([i, now[i], flat[j + 1]]);
      now[i] = flat[j + 1];
    }
    unpacked.push(changes);
  }
  return {steps: unpacked, final: now};
}

function choose(n) {
  number = n;
  const sample = trace.samples[n];
  ({steps, final} = unpack(sample));
  given = new Set(sample.given);
  lay(at);
  $("sample").value = n;
  $("previous").disabled = n === 0;
  $("next").disabled = n === trace.samples.length - 1;
}

// Lays out the sample with the widths of `final`, and shows a frame.
function lay(frame) {
  cells = [...trace.samples[number].start];
  at = 0;
  fresh = new Set();
  spans = cells.map(() => element("span", "token"));
  cells.forEach((_, i) => { shape(i); draw(i); });
  $("text").replaceChildren(...spans);
  drawBars();
  show(frame);
}

// Gives a position the width of its final text; of a trace that grows that may be unknown.
function shape(i) {
  const {style, dataset} = spans[i];
  const text = final[i] === MASK ? trace.blank : trace.texts[final[i]];
  dataset.shape = text.replaceAll("\n", "\u23CE\n") || "\u00B7";
  style.setProperty("--before", Number(/^ ./s.test(text)));
  style.setProperty("--after", Number(/. $/s.test(text)));
  dataset.breaks = text.replace(/[^\n]/g, "");
}

// Takes another trace; `choose` then shows one of its samples.
function load(data, expected = data.calls.length - 1) {
  trace = data;
  last = trace.calls.length - 1;
  planned = expected;
  number = at = 0;
  leftName = trace.masks ? "masks left" : "not final";
  $("sample").replaceChildren(...trace.samples.map((_, n) => new Option(`sample ${n}`, n)));
  $("samples").hidden = $("sample-keys").hidden = trace.samples.length === 1;
  $("legend-given").hidden = !trace.samples.some((sample) => sample.given.length);
  $("legend-mask").hidden = !trace.masks;
  $("legend-draft").hidden = trace.masks;
  $("legend-empty").hidden = !trace.texts.some((text, i) => i !== MASK && text === "");
  $("left-name").textContent = leftName;
  measure();
}

// The slider's range, and room for the longest number, so that the line stands still.
function measure() {
  const most = Math.max(last, planned), length = trace.samples[0].start.length;
  $("last").textContent = $("frame").max = most;
  for (const [id, value] of [["step", most], ["left", length], ["fresh", length],
      ["calls", Math.max(most, trace.calls[last])]]) {
    $(id).style.minWidth = `${String(value).length}ch`;
  }
}

// ---- A trace that grows ---------------------------------------------------------------------

let redrawing;

// Adds a step to the only sample, as [position, cell] pairs; whoever sees the last frame stays there.
function extend(pairs, time, calls) {
  const follows = at === last && !playing;
  steps.push(pairs.map(([i, cell]) => [i, final[i], cell]));
  trace.samples[0].times.push(time);
  trace.calls.push(calls);
  last += 1;
  for (const [i, cell] of pairs) {
    final[i] = cell;
    shape(i);
  }
  measure();
  if (follows) show(last);
  cancelAnimationFrame(redrawing);
  redrawing = requestAnimationFrame(drawBars);
}

// Ends its growth: all frames have the widths of the last from here on.
function complete() {
  planned = last;
  measure();
  lay(at);
}

// ---- Frames ---------------------------------------------------------------------------------

const isNew = ([, before, after]) => after !== MASK && trace.ids[before] !== trace.ids[after];
const isDraft = (i) => cells[i] !== MASK && trace.ids[cells[i]] !== trace.ids[final[i]];

// Goes to a frame; new is what changed after the frame `since`.
function show(frame, since = frame - 1) {
  const touched = new Set(fresh);
  const put = (i, cell) => { cells[i] = cell; touched.add(i); };
  while (at < frame) for (const [i, , after] of steps[++at]) put(i, after);
  while (at > frame) for (const [i, before] of steps[at--]) put(i, before);
  fresh = new Set();
  for (let k = Math.max(since, 0) + 1; k <= frame; k++) {
    for (const change of steps[k]) if (isNew(change) && cells[change[0]] !== MASK) fresh.add(change[0]);
  }
  for (const i of fresh) touched.add(i);
  for (const i of touched) draw(i);
  report();
}

function draw(i) {
  const span = spans[i], cell = cells[i], text = trace.texts[cell];
  const kinds = ["token"];
  if (cell === MASK) kinds.push("mask");
  else if (text === "") kinds.push("empty");
  if (given.has(i)) kinds.push("given");
  if (fresh.has(i)) kinds.push("new");
  if (isDraft(i)) kinds.push("draft");
  span.className = kinds.join(" ");
  span.removeAttribute("title");
  if (span.cell === cell) return;
  span.cell = cell;
  const [, space, inner, end] = text.match(/^( ?)(.+?)( ?)$/s) || ["", "", text, ""];
  const word = element("span", "word");
  for (const part of inner.split(/(\n)/)) {
    word.append(part === "\n" ? element("span", "newline", part) : part);
  }
  span.replaceChildren(space, word, end);
}

function report() {
  const masks = cells.reduce((sum, cell) => sum + (cell === MASK), 0);
  const left = trace.masks ? masks : cells.reduce((sum, _, i) => sum + isDraft(i), 0);
  const time = trace.samples[number].times[at].toFixed(3);
  $("step").textContent = at;
  $("time").textContent = time;
  $("left").textContent = left;
  $("fresh").textContent = fresh.size;
  $("calls").textContent = trace.calls[at];
  $("frame").value = at;
  $("frame").setAttribute("aria-valuetext", `step ${at} of ${$("last").textContent}, ${left} ${leftName}`);
  $("back").disabled = at === 0;
  $("on").disabled = at === last;
  document.querySelector(".done").style.clipPath = `inset(0 ${100 - 100 * at / (Math.max(last, planned) || 1)}% 0 0)`;
  if (!playing) settle();
}

function drawBars() {
  const sizes = steps.map((changes) => changes.filter(isNew).length);
  const top = Math.max(1, ...sizes);
  const path = sizes.map((n, k) => n && `M${k - 1} 1V${1 - n / top}H${k - 0.15}V1Z`).filter(Boolean);
  const width = Math.max(last, planned) || 1;
  document.querySelector("svg").setAttribute("viewBox", `0 0 ${width} 1`);
  // The first line has no height: it makes both paths as wide as the slider, also of a few steps.
  path.unshift(`M0 1H${width}`);
  document.querySelectorAll("path").forEach((p) => p.setAttribute("d", path.join("")));
}

// When all is at rest, the screen reader learns where we are, and the page what to remember.
let resting, remember = () => {};
function settle() {
  clearTimeout(resting);
  resting = setTimeout(() => {
    $("heard").textContent = `Sample ${number}, ${$("frame").getAttribute("aria-valuetext")}`;
    remember();
  }, 300);
}

// ---- Playing --------------------------------------------------------------------------------

let playing = false, before = 0, owed = 0;

function play(on) {
  playing = on;
  $("play").textContent = on ? "Pause" : "Play";
  if (!on) return show(at);
  clearTimeout(resting);
  if (at === last) show(0);
  before = performance.now();
  owed = 0;
  requestAnimationFrame(tick);
}

// At speed 1 a run takes about 12 seconds, but no less than a third of a second a step.
function tick(now) {
  if (!playing) return;
  const rate = Number($("speed").value) * Math.max(3, last / 12);
  // A tab that was out of sight goes on where it stood.
  owed += Math.min(250, Math.max(0, now - before)) / 1000 * rate;
  before = now;
  // Who asked for rest sees two pictures a second, and on each all that is new since the last.
  const hold = calm.matches ? rate / 2 : 1;
  if (owed >= hold) {
    const next = Math.min(last, at + Math.floor(owed));
    owed -= Math.floor(owed);
    show(next, at);
  }
  if (at === last) play(false);
  else requestAnimationFrame(tick);
}

// ---- Hands ----------------------------------------------------------------------------------

const step = (by) => { if (playing) play(false); show(Math.min(last, Math.max(0, at + by))); };
const sampleBy = (by) => {
  const n = number + by;
  if (n >= 0 && n < trace.samples.length) choose(n);
};
$("play").onclick = () => play(!playing);
$("back").onclick = () => step(-1);
$("on").onclick = () => step(1);
$("previous").onclick = () => sampleBy(-1);
$("next").onclick = () => sampleBy(1);
$("sample").onchange = (event) => choose(Number(event.target.value));
$("frame").oninput = (event) => step(Number(event.target.value) - at);

const KEYS = {
  " ": () => play(!playing),
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  Home: () => step(-last),
  End: () => step(last),
  "[": () => sampleBy(-1),
  "]": () => sampleBy(1),
};
addEventListener("keydown", (event) => {
  const action = KEYS[event.key];
  const own = event.target.closest?.("button, select");  // These know space and arrows themselves.
  if (event.target.closest?.("textarea, input:not([type=range])")) return;  // Keys write there.
  if (!trace || !action || event.ctrlKey || event.metaKey || event.altKey) return;
  if (own && (event.key === " " || own.tagName === "SELECT")) return;
  event.preventDefault();
  action();
});

// Under the pointer: which token it is, and when it came.
$("text").addEventListener("pointerover", (event) => {
  const i = spans.indexOf(event.target.closest(".token"));
  if (i < 0) return;
  let k = at;
  while (k > 0 && !steps[k].some((change) => change[0] === i && isNew(change))) k--;
  const since = given.has(i) ? "given" : k ? `since step ${k}` : "from the start";
  spans[i].title = cells[i] === MASK ? `position ${i}, mask`
    : `position ${i}, token ${trace.ids[cells[i]]}, ${since}`;
});
