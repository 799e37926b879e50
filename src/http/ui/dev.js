// In `fly-rpc dev --chaos` only: what may be done to the cluster. The program serves the page itself, passes an instance on
// below /at/NAME/, and obeys every client that has the token in the page's fragment.

import { byId, element, keyed, say } from "./dom.js";

const token = new URLSearchParams(location.hash.slice(1)).get("control");
const VERBS = ["kill", "stop", "resume", "drain", "start"];

async function control(line) {
  const options = { headers: { authorization: `Bearer ${token}` } };
  if (line) Object.assign(options, { method: "POST", body: line });
  const response = await fetch("/control", options);
  return response.json();
}

async function order(line) {
  const said = await control(line).then(({ said }) => said, () => "`fly-rpc dev` does not answer");
  say("dev-said", said);
  await show();
}

async function show() {
  const answer = await control().catch(() => undefined);
  if (!answer?.instances) return;
  keyed(byId("dev-rows"), answer.instances, ({ name }) => name, make, (row, { has_ended: hasEnded }) => {
    row.firstChild.classList.toggle("dim", hasEnded);
    for (const button of row.querySelectorAll("button")) button.disabled = hasEnded !== (button.value === "start");
  });
}

function make({ name }) {
  const button = (verb) => element("button", {
    type: "button", value: verb, "aria-label": `${verb} ${name}`, onclick: () => order(`${verb} ${name}`),
  }, verb);
  const page = element("a", { href: `/at/${name}/ui${location.hash}` }, `as ${name} sees it`);
  return element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, ...VERBS.map(button)), element("td", {}, page));
}

/** Shows the verbs, where the page has the token for them. */
export async function start() {
  if (!token) return;
  byId("dev").hidden = false;
  byId("dns-down").onclick = () => order("dns down");
  byId("dns-up").onclick = () => order("dns up");
  await show();
  setInterval(show, 1000);
}
