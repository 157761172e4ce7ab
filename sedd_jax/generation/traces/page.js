// ---- The page of a trace --------------------------------------------------------------------

// The address says where to start: #sample=1&frame=12.
remember = () => history.replaceState(null, "", `#sample=${number}&frame=${at}`);
function follow() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const within = (name, top) => Math.min(top, Math.max(0, parseInt(asked.get(name)) || 0));
  if (playing) play(false);
  at = within("frame", last);
  choose(within("sample", trace.samples.length - 1));
}
addEventListener("hashchange", follow);

load(JSON.parse($("data").textContent));
const settings = trace.settings.filter(([name]) => name !== "checkpoint");  // It is the title.
const facts = [...settings, ["calls of the network", trace.calls[last]], ["seconds", trace.seconds]];
for (const [name, value] of facts) {
  const row = element("div", "");
  row.append(element("dt", "", name), element("dd", "", value));
  $("run").append(row);
}
follow();
