// Asks for /api/status every second and shows it. Everything from the server is put in as text, never as markup.
"use strict";

const EVERY_MS = 1000;
const PATIENCE_MS = 4000;
const STAGES = ["queue", "decode", "infer", "encode", "total"];
const $ = (id) => document.getElementById(id);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function say(id, text) {
  const shown = $(id);
  if (shown.textContent !== text) shown.textContent = text;
}

function count(value) {
  return value === null ? "–" : Math.round(value).toLocaleString("en");
}

function rate(value) {
  return value === null ? "–" : value.toFixed(value < 10 ? 1 : 0);
}

function bytes(value) {
  if (value === null) return "–";
  const size = Math.abs(value);
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  let scaled = size;
  while (scaled >= 999.5 && unit < units.length - 1) { scaled /= 1000; unit += 1; }
  const digits = unit === 0 || scaled >= 99.95 ? 0 : 1;
  return `${value < 0 ? "-" : ""}${scaled.toFixed(digits)} ${units[unit]}`;
}

function milliseconds(value) {
  if (value === null) return "–";
  return `${value.toFixed(value < 1 ? 2 : value < 100 ? 1 : 0)} ms`;
}

// Without its unit: the table's head has it.
function short(value) {
  return value === null ? "–" : value.toFixed(value < 1 ? 3 : value < 100 ? 1 : 0);
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

function listed(counts) {
  return Object.entries(counts).map(([name, how]) => `${name} ${count(how)}`).join(", ");
}

function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

// A line over a filled area; `null` breaks the line. 100 x 100 units, stretched to the element.
function draw(id, values, points) {
  const top = Math.max(0, ...values.filter((value) => value !== null));
  const svg = $(id);
  svg.setAttribute("viewBox", "0 0 100 100");
  const x = (k) => 100 - (values.length - 1 - k) * 100 / (points - 1);
  const y = (value) => 100 - (top ? value / top : 0) * 94;
  let line = "";
  let area = "";
  let start = null;
  values.forEach((value, k) => {
    if (value !== null) {
      const at = `${x(k).toFixed(2)} ${y(value).toFixed(2)}`;
      line += start === null ? `M${at}h.01` : `L${at}`;
      area += start === null ? `M${x(k).toFixed(2)} 100L${at}` : `L${at}`;
      if (start === null) start = k;
    }
    const last = k === values.length - 1 ? k : k - 1;
    if (start !== null && (value === null || k === values.length - 1)) {
      area += `L${x(last).toFixed(2)} 100Z`;
      start = null;
    }
  });
  const paths = [["area", area], ["line", line]].map(([name, data]) => {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", name);
    path.setAttribute("d", data);
    return path;
  });
  svg.replaceChildren(...paths);
  return top;
}

function latencies(model) {
  const table = element("table");
  const head = element("tr");
  const p50 = element("tr");
  const p95 = element("tr");
  head.append(element("th", "ms"), ...STAGES.map((stage) => element("th", stage, "number")));
  p50.append(element("td", "p50"), ...STAGES.map((s) => element("td", short(model.latency[s].p50_ms), "number")));
  p95.append(element("td", "p95"), ...STAGES.map((s) => element("td", short(model.latency[s].p95_ms), "number")));
  table.append(head, p50, p95);
  const scroll = element("div", undefined, "sideways");
  scroll.append(table);
  return scroll;
}

function card(model) {
  const made = element("div", undefined, "model");
  const title = element("div");
  title.append(element("h3", model.name), element("span", model.state, `state ${model.state}`));
  const releases = model.releases.map(
    (one) => `release ${one.release}, ${one.codec}, ${plural(one.levels, "level")}, ` +
      `${one.free_size ? "up to " : ""}${one.input_size[1]} × ${one.input_size[0]} pixels, codec ${one.codec_fingerprint.slice(0, 8)}` +
      (one.tails.length > 1 ? `, tails ${one.tails.join(", ")}` : "")
  );
  title.append(element("span", releases.join("; "), "quiet"));
  const byLevel = Object.entries(model.levels).map(([level, how]) => `${level === "image" ? "images" : `level ${level}`}: ${count(how)}`);
  const levels = byLevel.length ? ` (${byLevel.join(", ")})` : "";
  const facts = `${rate(model.frames_per_second)} frames/s; ${plural(model.streams, "stream")}; ` +
    `queue ${count(model.queue_depth)}; mean batch ${model.mean_batch === null ? "–" : model.mean_batch.toFixed(1)}; ` +
    `saved ${bytes(model.bytes.saved)}; frames: ${listed(model.frames) || "none"}${levels}`;
  made.append(title, element("p", facts, "facts"), latencies(model));
  return made;
}

function row(client) {
  const made = element("tr");
  made.append(
    element("td", client.name),
    element("td", listed(client.streams)),
    element("td", count(client.frames), "number"),
    element("td", bytes(client.received_bytes), "number"),
    element("td", duration(client.since_seconds), "number"),
  );
  return made;
}

function bundleRow(bundle) {
  const made = element("tr");
  const state = element("td");
  state.append(element("span", bundle.state, `state ${bundle.state}`));
  const model = bundle.name === null ? "–" : `${bundle.name}, release ${bundle.release}`;
  made.append(element("td", bundle.file), state, element("td", model), element("td", bundle.reason, "reason"));
  return made;
}

function cameraRow(camera, now) {
  const made = element("tr");
  const since = camera.since_unix === null ? "before the start" : duration(now.now_unix - camera.since_unix);
  made.append(
    element("td", camera.client),
    element("td", camera.model),
    element("td", camera.stream_id, "id"),
    element("td", camera.statistic === null ? "–" : camera.statistic),
    element("td", camera.shift === null ? "–" : camera.shift.toFixed(2), "number"),
    element("td", since, "number"),
  );
  return made;
}

function showTroubles(now) {
  const bundles = now.bundles.filter((one) => one.state !== "ready");
  $("bundles-part").hidden = bundles.length === 0;
  $("bundles").tBodies[0].replaceChildren(...bundles.map(bundleRow));
  const cameras = now.drift === null ? [] : now.drift.cameras_in_alarm;
  $("drift-part").hidden = cameras.length === 0;
  $("drift").tBodies[0].replaceChildren(...cameras.map((one) => cameraRow(one, now)));
  const more = now.drift === null ? 0 : now.drift.in_alarm - cameras.length;
  say("drift-note", more > 0 ? `and ${count(more)} more` : "");
}

function show(now) {
  const state = $("state");
  say("state", now.state);
  state.className = `state ${now.state}`;
  say("about", `${now.version} on ${now.address}, up ${duration(now.uptime_seconds)}`);
  const answered = now.frames.OK || 0;
  const failed = Object.fromEntries(Object.entries(now.frames).filter(([name]) => name !== "OK"));
  const all = Object.values(now.frames).reduce((sum, one) => sum + one, 0);
  const slowest = now.models.map((model) => model.latency.total.p95_ms).filter((one) => one !== null);
  say("rate", rate(now.frames_per_second));
  say("frames", `${count(answered)} answered`);
  say("p95", slowest.length ? milliseconds(Math.max(...slowest)) : "–");
  say("streams", count(now.streams));
  say("clients-total", plural(now.clients_total, "client"));
  say("received-rate", now.received_bytes_per_second === null ? "–" : `${bytes(now.received_bytes_per_second)}/s`);
  say("received", `${bytes(now.bytes.received)} in all`);
  say("saved", bytes(now.bytes.saved));
  say("saved-share", now.bytes.raw ? `${(100 * now.bytes.saved / now.bytes.raw).toFixed(1)} % of ${bytes(now.bytes.raw)}` : "");
  say("failed", count(all - answered));
  const refused = Object.keys(now.refusals).length ? `turned away: ${listed(now.refusals)}` : "";
  say("failed-what", [listed(failed), refused].filter(Boolean).join("; "));
  say("rate-top", `up to ${rate(draw("rate-chart", now.series.frames_per_second, 120))}`);
  say("p95-top", `up to ${milliseconds(draw("p95-chart", now.series.p95_ms, 120))}`);
  $("models").replaceChildren(...now.models.map(card));
  showTroubles(now);
  $("clients").tBodies[0].replaceChildren(...now.clients.map(row));
  const more = now.clients_total - now.clients.length;
  say("clients-note", now.clients_total ? (more > 0 ? `and ${count(more)} more` : "") : "No client has a stream open.");
  const use = now.process;
  const memory = use.resident_bytes === null ? "" : `${bytes(use.resident_bytes)} of memory, `;
  const files = use.open_fds === null ? "" : `, ${count(use.open_fds)} file descriptors`;
  say("process", `${memory}${use.cpu_seconds.toFixed(1)} s of CPU time${files}`);
}

function away(error) {
  document.body.classList.add("away-now");
  say("state", "no answer");
  $("state").className = "state away";
  $("trouble").hidden = false;
  say("trouble", `The server does not answer (${error.message}). What is shown is old; asking again every second.`);
}

async function poll() {
  const patience = new AbortController();
  const timer = setTimeout(() => patience.abort(), PATIENCE_MS);
  try {
    const answer = await fetch("/api/status", { signal: patience.signal });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    const now = await answer.json();
    if (now.schema !== 1) { location.reload(); return; }
    document.body.classList.remove("away-now");
    $("trouble").hidden = true;
    show(now);
  } catch (error) {
    away(error);
  } finally {
    clearTimeout(timer);
    setTimeout(poll, document.hidden ? 5 * EVERY_MS : EVERY_MS);
  }
}

poll();
