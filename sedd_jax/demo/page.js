// ---- The page of the demo -------------------------------------------------------------------

const model = JSON.parse($("data").textContent);
const FIELDS = ["template", "sampler", "steps", "temperature", "length", "seed"];
let drawing = null;  // Aborts the request under way.
let result = null;   // The last complete one.
const entries = new Map();  // Entries of trace.texts, by token and text.

// ---- Settings and their link ----------------------------------------------------------------

const takesSteps = () => model.samplers.find((s) => s.name === $("sampler").value)?.steps;

function settings() {
  const found = {
    template: $("template").value,
    sampler: $("sampler").value,
    temperature: $("temperature").valueAsNumber,
    length: $("length").valueAsNumber,
    seed: $("seed").valueAsNumber,
  };
  if (takesSteps()) found.steps = $("steps").valueAsNumber;
  return found;
}

const link = () => `${location.href.split("#")[0]}#${new URLSearchParams(settings())}`;

// Takes the settings that a link names; the others stay.
function follow() {
  const named = new URLSearchParams(location.hash.slice(1));
  for (const name of FIELDS) if (named.has(name)) $(name).value = named.get(name);
  suit();
  return named.has("template");
}

function suit() {
  $("steps").disabled = !takesSteps();
}

function newSeed() {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
}

// ---- Drawing --------------------------------------------------------------------------------

async function fillIn() {
  if (!$("form").reportValidity()) return;
  stop();
  const asked = settings(), own = drawing = new AbortController();
  history.replaceState(null, "", link());
  busy(true);
  $("fault").textContent = "";
  say("sent");
  const sent = performance.now();
  try {
    const response = await fetch("v1/infill", {
      method: "POST",
      headers: {"Content-Type": "application/json"},
      body: JSON.stringify({...asked, stream: true}),
      signal: own.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error);
    for await (const [kind, data] of events(response.body)) {
      if (own.signal.aborted) return;
      receive(kind, data, asked, sent);
    }
    if (!result) throw new Error("the connection ended before the text did");
  } catch (error) {
    if (own.signal.aborted) return;
    $("fault").textContent = error.message || String(error);
    say("");
    if (trace && !result) complete();
  } finally {
    if (drawing === own) {
      drawing = null;
      busy(false);
    }
  }
}

// The server-sent events of a body, as [kind, data].
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const [, kind, data] = part.match(/^event: (\w+)\ndata: (.*)$/s);
      yield [kind, JSON.parse(data)];
    }
  }
}

function receive(kind, data, asked, sent) {
  const seconds = ((performance.now() - sent) / 1000).toFixed(1);
  switch (kind) {
    case "waiting":
      return say(data.ahead === 1 ? "waiting: one request is before this"
        : `waiting: ${data.ahead} requests are before this`);
    case "compiling":
      return say(`compiling for ${data.length} tokens and this sampler, once`);
    case "start":
      return begin(data, asked);
    case "step":
      advance(data);
      return say(`filling in, ${seconds} s`);
    case "done":
      result = data;
      complete();
      return say(`seed ${data.seed}, ${data.calls} calls of the network, ${seconds} s`);
    case "error":
      throw new Error(data.error);
  }
}

function begin(data, asked) {
  result = null;
  entries.clear();
  if (playing) play(false);
  const start = Array(data.length).fill(MASK);
  begin.data = {
    masks: model.masks, blank: model.blank, ids: [-1], texts: [""], calls: [0],
    samples: [{given: data.given, start, times: [1], steps: []}],
  };
  begin.planned = asked.steps ? asked.steps + 1 : 0;
}

const pairs = (data, changes) => changes.map(([i, token, text]) => {
  if (token === null) return [i, MASK];
  const key = `${token} ${text}`;
  if (!entries.has(key)) {
    entries.set(key, data.texts.length);
    data.ids.push(token);
    data.texts.push(text);
    if (text === "") $("legend-empty").hidden = false;
  }
  return [i, entries.get(key)];
});

function advance(data) {
  if (data.step === 0) {
    const trace = begin.data;
    for (const [i, cell] of pairs(trace, data.changes)) trace.samples[0].start[i] = cell;
    load(trace, begin.planned);
    $("stage").hidden = false;
    choose(0);
    $("stage").scrollIntoView({block: "nearest"});
    return;
  }
  extend(pairs(trace, data.changes), data.time, data.calls);
}

function stop() {
  if (!drawing) return;
  drawing.abort();
  drawing = null;
  busy(false);
  if (trace && !result) complete();
  say("stopped");
}

// ---- What the page says ---------------------------------------------------------------------

const say = (text) => { $("status").textContent = text; };

function busy(on) {
  $("stop").disabled = !on;
  $("copy-text").disabled = on || !trace;
}

async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // Not allowed, or not there at an address without TLS.
    const area = Object.assign(document.createElement("textarea"), {value: text});
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1200);
}

// The text of the frame that is shown, its masks as blanks.
function shownText() {
  if (at === last && result) return result.text;
  let text = "", blanks = 0;
  const close = () => { if (blanks) text += `[[${blanks}]]`; blanks = 0; };
  for (const cell of cells) {
    if (cell === MASK) { blanks++; continue; }
    close();
    text += trace.texts[cell];
  }
  close();
  return text;
}

// ---- Start ----------------------------------------------------------------------------------

for (const {name, label} of model.samplers) $("sampler").add(new Option(label, name));
$("sampler").value = model.samplers.some((s) => s.name === "tweedie") ? "tweedie" : model.samplers[0].name;
$("template").value = model.template;
$("template").maxLength = model.mostCharacters;
$("steps").max = model.mostSteps;
$("length").value = $("length").max = model.length;
newSeed();
suit();
$("sampler").onchange = suit;
$("form").onsubmit = (event) => { event.preventDefault(); fillIn(); };
$("stop").onclick = stop;
$("again").onclick = () => { newSeed(); fillIn(); };
$("copy-text").onclick = () => copy(shownText(), $("copy-text"));
$("copy-link").onclick = () => copy(link(), $("copy-link"));
$("insert").onclick = () => {
  const box = $("template");
  box.setRangeText("[[8]]", box.selectionStart, box.selectionEnd, "end");
  box.focus();
};
// Enter fills in; with shift it is a line break.
$("template").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  fillIn();
});
addEventListener("hashchange", () => { if (follow()) fillIn(); });
if (follow()) fillIn();
