// The form to try a call: what it sends, and what came of it.

import { Trouble, post } from "./api.js";
import { byId, element, ms } from "./dom.js";

/** Arguments to start from, for the functions that every instance has. */
const EXAMPLES = {
  __proto__: null,
  "Kernel.*": "[6, 7]", "Kernel.+": "[1, 2]", "Kernel.-": "[3, 2]", "Kernel.raise": '["no"]', "Process.sleep": "[500]",
  "String.capitalize": '["fly"]', "String.downcase": '["FLY"]', "String.length": '["fly"]', "String.reverse": '["fly"]',
  "String.split": '["to fly"]', "String.trim": '[" fly "]', "String.upcase": '["fly"]',
};

export const RAN = { yes: "it ran", no: "it did not run", maybe: "it may have run" };

/** Lists the functions, with what they declare, and the regions to choose from. */
export function offer({ functions, details }, regions) {
  const names = Object.entries(functions).flatMap(([module, names]) => names.map((name) => `${module}.${name}`));
  const option = (value) => element("option", { value });
  byId("functions").replaceChildren(...names.map(option));
  byId("regions").replaceChildren(...["any", "primary", "all", ...regions].map(option));
  byId("function").oninput = () => {
    const name = byId("function").value;
    const params = details[name]?.params?.map((param) => param.name);
    const args = EXAMPLES[name] ?? (params && `{${params.map((param) => `"${param}": null`).join(", ")}}`);
    if (args) byId("args").value = args;
  };
}

/** Sends what is in the form; `draw` gets the regions where it ran or was tried. */
export async function submit(self, draw) {
  const regions = byId("region").value.trim();
  const started = performance.now();
  try {
    const body = written();
    const each = byId("each").checked;
    const text = await post(`${each ? "each" : "rpc"}/${encodeURIComponent(regions).replaceAll("%2C", ",")}`, body);
    const answer = JSON.parse(text);
    const here = ms(performance.now() - started);
    if (each) {
      draw(answer.results.map(({ region }) => region));
      show(`${answer.meta.succeeded} of ${answer.meta.asked} answered well, ${here} from here`, "ready", many(JSON.parse(text, exact)), text);
    } else {
      draw([answer.meta.region]);
      show(`${self()} → ${came(answer.meta)}, ${here} from here`, "ready", undefined, text);
    }
  } catch (trouble) {
    if (!(trouble instanceof Trouble || trouble instanceof SyntaxError)) throw trouble;
    const { code = "not sent", executed = "no", meta } = trouble.problem ?? {};
    draw(meta?.instance ? [meta.region] : []);
    const where = meta?.instance ? ` ${self()} → ${came(meta)}.` : "";
    show(`${code}, ${RAN[executed]}: ${trouble.message}.${where}`, "bad", undefined, trouble.text);
  }
}

/** The call as JSON, its arguments as they were typed: a number that was read and written again could be another. */
function written() {
  const [, module, name] = byId("function").value.trim().match(/^(.+)\.(.+)$/) ?? [];
  if (!name) throw new SyntaxError("a function is Module.function, such as String.upcase");
  const args = byId("args").value.trim() || "[]";
  try {
    JSON.parse(args);
  } catch (error) {
    throw new SyntaxError(`the arguments are not JSON: ${error.message}`);
  }
  const members = [`"module":${JSON.stringify(module)}`, `"function":${JSON.stringify(name)}`, `"args":${args}`];
  if (byId("timeout").value) members.push(`"timeout_ms":${byId("timeout").value}`);
  if (byId("idempotent").checked) members.push('"idempotent":true');
  return `{${members.join()}}`;
}

function came({ region, instance, attempts, elapsed_ms }) {
  return `${instance} in ${region}: ${attempts} attempt${attempts === 1 ? "" : "s"}, ${ms(elapsed_ms)}`;
}

/** Keeps a number as it was written, in a browser that can: one that is read and written again could be another. */
function exact(_name, value, context) {
  return typeof value === "number" && context?.source && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
}

function many({ results }) {
  const rows = results.map(({ region, instance, result, problem }) => element("tr", {},
    element("td", {}, region), element("td", {}, instance ?? "–"),
    element("td", { class: problem ? "wrap bad" : "wrap" },
      problem ? `${problem.code}, ${RAN[problem.executed]}: ${problem.detail}` : JSON.stringify(result))));
  return element("table", {}, element("tbody", {}, ...rows));
}

function show(line, state, table, text) {
  const parts = [element("p", { class: state }, line), table, text && element("pre", { tabindex: "0", "aria-label": "The answer" }, text)];
  byId("answer").replaceChildren(...parts.filter(Boolean));
}
