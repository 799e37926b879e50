// The page of the cluster as this instance sees it: reads /regions, /functions and /events, and keeps what is shown up to date.

import { Trouble, events, get, useToken } from "./api.js";
import { RAN, offer, submit } from "./call.js";
import * as dev from "./dev.js";
import { ago, byId, element, keyed, ms, say } from "./dom.js";
import { WorldMap } from "./map.js";
import { city } from "./places.js";

/** How long counts are kept, how often what has no event is read, and how many calls are shown. */
const [WINDOW, PERIOD, CALLS] = [60_000, 2000, 15];

const map = new WorldMap(byId("map"), explain);
let cluster, functions, chosen, lastId, listed;
let counts = { in_flight: 0, running: 0, queued: 0, regions: [] };
let windows = [];
let calls = [];
let numbered = 0;
const attempts = new Map();
let explained = new Map();
const lost = { stream: "", answers: "" };

// What is read.

async function refresh() {
  try {
    [cluster, functions] = await Promise.all([get("regions"), get("functions")]);
    const ill = cluster.regions.filter(({ instances }) => instances.some((it) => it.state !== "ready" && !it.local));
    const asked = new Set([cluster.local, chosen, ...ill.map(({ region }) => region).slice(0, 6)].filter(Boolean));
    const answers = [...asked].map(async (region) => [region, await get(`regions/${region}/explain`)]);
    const settled = await Promise.allSettled(answers);
    explained = new Map(settled.filter(({ value }) => value).map(({ value }) => value));
    lost.answers = "";
  } catch (trouble) {
    if (!(trouble instanceof Trouble)) throw trouble;
    if (trouble.status === 401) return askForToken();
    lost.answers = trouble.message;
  }
  byId("content").hidden = !cluster;
  if (!cluster) return say("self", lost.answers);
  const regions = cluster.regions.map(({ region }) => region);
  const known = [functions.catalogue, ...regions].join();
  if (known !== listed) offer(functions, regions);
  listed = known;
  render();
}

const pause = (time) => new Promise((resume) => setTimeout(resume, time));

let due;
function refreshSoon() {
  due ??= setTimeout(async () => {
    due = undefined;
    await refresh();
  }, 50);
}

async function follow() {
  for (;;) {
    try {
      for await (const event of events(lastId)) {
        lost.stream = "";
        lastId = event.id ?? lastId;
        received(event);
      }
      lost.stream = "the stream of events has ended";
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble;
      if (trouble.status === 401) return;
      lost.stream = trouble.message;
    }
    refreshSoon();
    await pause(1000);
  }
}

function received({ name, data }) {
  if (name === "peer" || name === "lagged") refreshSoon();
  if (name === "counts") {
    counts = data;
    const now = performance.now();
    windows.push({ at: now, regions: data.regions });
    windows = windows.filter(({ at }) => now - at < WINDOW);
    if (cluster) render();
  }
  if (name === "attempt") {
    attempts.set(data.request_id, [...(attempts.get(data.request_id) ?? []), data]);
    if (attempts.size > 200) attempts.delete(attempts.keys().next().value);
    map.call(data.region, true, 0);
  }
  if (name === "call") {
    if (data.region) map.call(data.region, data.code !== null, data.elapsed_ms);
    calls = [{ ...data, number: numbered++, tried: attempts.get(data.request_id) ?? [] }, ...calls].slice(0, CALLS);
    attempts.delete(data.request_id);
    renderSoon();
  }
}

// The token.

function askForToken() {
  byId("token-form").hidden = false;
  say("self", "");
  byId("token").focus();
}

byId("token-form").onsubmit = async (event) => {
  event.preventDefault();
  useToken(byId("token").value);
  byId("token").value = "";
  try {
    await get("regions");
    byId("token-form").hidden = true;
    begin();
  } catch (trouble) {
    say("token-error", trouble.message);
  }
};

// What is shown.

const self = () => local()?.instance ?? "this instance";
const local = () => cluster.regions.flatMap(({ instances }) => instances).find((it) => it.local);

/** Calls of the last minute for a region, and its failures by code and by whether the function ran. */
function recent(region) {
  const sums = { calls: 0, failed: 0, failures: new Map() };
  for (const window of windows) {
    const counted = window.regions.find((it) => it.region === region);
    sums.calls += counted?.calls ?? 0;
    for (const { code, executed, calls } of counted?.failures ?? []) {
      const how = `${code} (${RAN[executed]})`;
      sums.failures.set(how, (sums.failures.get(how) ?? 0) + calls);
      sums.failed += calls;
    }
  }
  return sums;
}

let drawn;
function renderSoon() {
  drawn ??= requestAnimationFrame(() => {
    drawn = undefined;
    renderCalls();
  });
}

function render() {
  const mine = local();
  say("self", `${mine.instance} in ${cluster.local}${city(cluster.local) ? ` (${city(cluster.local)})` : ""}${
    cluster.is_primary ? ", the primary region" : `; primary ${cluster.primary}`}${mine.release ? ` · ${mine.release}` : ""}`);
  document.title = `${mine.instance} · fly-rpc`;
  const trouble = lost.answers || lost.stream;
  say("connection", trouble ? `not live: ${trouble}` : "live");
  byId("connection").className = trouble ? "lost" : "";
  renderNumbers();
  renderTrouble();
  renderMap();
  renderInstances();
  renderExplained();
  renderCalls();
}

function renderNumbers() {
  const sum = (of) => counts.regions.reduce((total, region) => total + of(region), 0);
  say("rate", `${sum(({ calls }) => calls)}`);
  const regions = new Set(windows.flatMap(({ regions }) => regions.map(({ region }) => region)));
  const failed = [...regions].reduce((total, region) => total + recent(region).failed, 0);
  say("failed", `${failed}`);
  byId("failed").className = failed > 0 ? "bad" : "";
  say("in-flight", `${counts.in_flight}`);
  say("running", `${counts.running}`);
  say("queued", `${counts.queued}`);
}

function renderTrouble() {
  const found = troubles();
  const shown = found.length > 0 ? found : [["/", "fine", "Nothing that this instance knows of."]];
  keyed(byId("trouble"), shown, ([key]) => key, () => element("li"), (item, [, weight, text]) => {
    item.className = weight;
    say(item, text);
  });
}

/** What is wrong, the worst first: a key of what it is about, its weight and its text. */
function troubles() {
  const found = [];
  const { discovery } = cluster;
  for (const { region, instances } of cluster.regions) {
    if (instances.length === 0) found.push([`${region}/`, "", `${region}: no instance is left.`]);
    else if (instances.every((it) => it.state !== "ready")) found.push([`${region}/`, "", `${region}: no instance is ready.`]);
    for (const it of instances.filter((it) => it.state !== "ready")) {
      const probed = explained.get(region)?.candidates.find(({ instance }) => instance === it.instance);
      const why = probed?.last_probe_error ? `: ${probed.last_probe_error}` : "";
      const seen = it.last_seen_ms === null ? "" : `, seen ${ago(it.last_seen_ms)}`;
      const weight = it.state === "draining" ? "note" : "";
      found.push([`${region}/${it.instance}`, weight, `${it.instance} in ${region} is ${it.state}${seen}${why}.`]);
    }
    for (const it of instances.filter((it) => (it.app ?? "up") !== "up")) {
      const why = it.local && functions.app?.reason ? `: ${functions.app.reason}` : "";
      found.push([`${region}/${it.instance}/app ${it.address}`, "", `The app of ${it.instance} in ${region} is ${it.app}${why}.`]);
    }
  }
  if (discovery.stale) found.push(["/discovery", "", `Discovery gets no whole answer: ${discovery.last_error}. Instances that are known go on.`]);
  for (const warning of new Set(discovery.warnings)) found.push([`/discovery/${warning}`, "", `Discovery: ${warning}`]);
  for (const region of [...cluster.regions.map(({ region }) => region), null]) {
    const { calls, failed, failures } = recent(region);
    const how = [...failures].map(([code, count]) => `${count} ${code}`).join(", ");
    const where = region ?? "regions that nobody knows";
    const weight = failed * 20 > calls ? "" : "note";
    if (failed > 0) found.push([`/failed/${region ?? ""}`, weight, `Of ${calls} calls for ${where} in the last minute ${failed} failed: ${how}.`]);
  }
  for (const { address, last_probe_error: error } of explained.get(cluster.local)?.unplaced ?? []) {
    if (error) found.push([`/at/${address}`, "note", `No instance is at ${address}: ${error}.`]);
  }
  return found;
}

function renderMap() {
  map.show(cluster.regions.map(({ region, instances }) => {
    const trips = instances.filter((it) => it.state === "ready" && it.rtt_ms !== null).map((it) => it.rtt_ms);
    return {
      region, instances, local: region === cluster.local, rtt: trips.length > 0 ? Math.min(...trips) : null,
      p50: counts.regions.find((it) => it.region === region)?.p50_ms ?? null,
    };
  }));
}

function renderInstances() {
  const rows = cluster.regions.flatMap(({ region, instances }) => {
    const own = { region, first: true };
    return instances.length === 0 ? [own] : instances.map((it, at) => ({ ...it, region, first: at === 0 }));
  });
  const make = ({ region }) => {
    const cells = Array.from({ length: 11 }, (_, at) => element("td", { class: [2, 3, 7, 8, 9, 10].includes(at) ? "number" : "" }));
    const button = element("button", { type: "button", class: "plain", onclick: () => explain(region) }, region);
    return element("tr", {}, element("th", { scope: "row" }, button, element("span", { class: "dim" })), ...cells);
  };
  keyed(byId("instances"), rows, ({ region, instance = "", address = "" }) => `${region}/${instance} ${address}`, make, (row, it) => {
    const counted = counts.regions.find(({ region }) => region === it.region);
    const { failed } = recent(it.region);
    row.className = it.first ? "" : "same";
    const [head, instance, state, trip, seen, release, has, app, rate, failures, p50, p99] = row.children;
    say(head.lastChild, `${city(it.region) ? ` ${city(it.region)}` : ""}${it.region === cluster.primary ? " (primary)" : ""}`);
    say(instance, it.instance ? `${it.instance}${it.local ? " (this one)" : ""}` : "none is left");
    say(state, it.state ?? "–");
    state.className = it.state ?? "suspect";
    say(trip, it.local ? "–" : ms(it.rtt_ms));
    say(seen, it.local ? "–" : ago(it.last_seen_ms));
    say(release, it.release ?? "–");
    say(has, offered(it));
    say(app, it.app ?? "–");
    app.className = (it.app ?? "up") === "up" ? "" : "bad";
    say(rate, it.first ? `${counted?.calls ?? 0}` : "");
    say(failures, it.first ? `${failed}` : "");
    failures.classList.toggle("bad", it.first && failed > 0);
    say(p50, it.first ? ms(counted?.p50_ms) : "");
    say(p99, it.first ? ms(counted?.p99_ms) : "");
  });
  const { source, stale, last_success_ms: success, rounds } = cluster.discovery;
  say("discovery", source
    ? `Discovery asks for ${source}: ${stale ? "stale, " : ""}last whole answer ${ago(success)}, ${rounds} rounds.`
    : "Nothing to discover: this is a cluster of one.");
  const { app } = functions;
  say("app", app ? `The app beside this instance, ${app.url}: ${app.state}${app.reason ? `, ${app.reason}` : ""}.` : "");
}

/** How many functions an instance offers, and whether they are those of this one. */
function offered({ functions: count, catalogue, local }) {
  if (count === null || count === undefined) return "–";
  return local || catalogue === functions.catalogue ? `${count}` : `${count}, others than here`;
}

async function explain(region) {
  chosen = region;
  await refresh();
  byId("explain-title").focus();
}

function renderExplained() {
  const answer = chosen && explained.get(chosen);
  byId("explain").hidden = !answer;
  if (!answer) return;
  say("explain-title", `Where calls for ${chosen} go`);
  const make = () => element("tr", {}, element("th", { scope: "row" }),
    ...["", "wrap", "", "wrap"].map((name) => element("td", { class: name })));
  keyed(byId("candidates"), answer.candidates, ({ instance, address }) => `${instance} ${address}`, make, (row, it) => {
    const [head, goes, why, probe, error] = row.children;
    say(head, it.instance);
    say(goes, it.chosen ? "yes" : "no");
    goes.className = it.chosen ? "ready" : "suspect";
    say(why, it.reason);
    say(probe, it.local ? "–" : ago(it.last_probe_ms));
    say(error, it.last_probe_error ?? "–");
  });
  say("explain-note", answer.candidates.length > 0 ? "Of those, a call goes to the less busy of two at random." : "No instance is left there.");
}

// Not by the fragment, which may have a token.
document.querySelector(".skip").onclick = (event) => {
  event.preventDefault();
  byId("instances-title").focus();
};

byId("explain-close").onclick = () => {
  chosen = undefined;
  byId("explain").hidden = true;
  byId("instances-title").focus();
};

function renderCalls() {
  if (!cluster) return;
  byId("calls-note").hidden = calls.length > 0;
  const make = () => element("tr", {}, element("th", { scope: "row" }), element("td", { class: "wrap" }),
    element("td"), element("td"), element("td", { class: "number" }));
  keyed(byId("calls"), calls, ({ number }) => number, make, (row, call) => {
    const [name, path, came, ran, took] = row.children;
    say(name, call.function);
    const steps = call.tried.map(({ instance, code }) => `${instance} ✕ ${code}`);
    if (call.instance && call.tried.at(-1)?.instance !== call.instance) steps.push(`${call.instance} in ${call.region}`);
    if (steps.length === 0) steps.push(`${call.region ?? "nowhere"}, tried nowhere`);
    say(path, [self(), ...steps.filter((step) => step !== `${self()} in ${cluster.local}`)].join(" → "));
    say(came, call.code ?? "a result");
    came.className = call.code ? "bad" : "ready";
    say(ran, RAN[call.executed]);
    say(took, ms(call.elapsed_ms));
  });
}

byId("call-form").onsubmit = (event) => {
  event.preventDefault();
  submit(self, (regions) => map.draw(regions));
};

/** Reads, and reads again, until a token is asked for; what happens is followed from the first answer on. */
async function begin() {
  let follows = false;
  for (;;) {
    // Whatever an answer was, the next one may be another.
    await refresh().catch(reportError);
    if (!byId("token-form").hidden) return;
    if (cluster && !follows) {
      follows = true;
      follow();
    }
    await pause(PERIOD);
  }
}

dev.start();
begin();
