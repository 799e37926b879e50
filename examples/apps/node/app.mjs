import express from "express"; // npm install express
import { setTimeout } from "node:timers/promises";

const { PORT, RPC_APP_TOKEN, FLY_RPC_URL, FLY_RPC_TOKEN } = process.env;

async function addIn(region, ...args) { // in another region, through the instance beside this app
  const headers = { "content-type": "application/json", authorization: `Bearer ${FLY_RPC_TOKEN}` };
  const answer = await fetch(`${FLY_RPC_URL}/rpc/${region}/Math/add`, { method: "POST", headers, body: JSON.stringify(args) });
  const { result, ...problem } = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(problem.detail), { name: problem.code, data: problem });
  return result;
}

const number = (name) => ({ name, schema: { type: "number" } });
const string = (name) => ({ name, schema: { type: "string" } });
const functions = { // `run` is none of what the list declares: JSON has no functions
  "Math.add": { run: (a, b) => a + b, params: [number("a"), number("b")], idempotent: true },
  "Demo.fail": { run: (message) => { throw new RangeError(message); }, params: [string("message")] },
  "Demo.sleep": { run: (ms) => setTimeout(ms), params: [number("ms")], timeout_ms: 10_000 },
  "Demo.add_in": { run: addIn, params: [string("region"), number("a"), number("b")], idempotent: true },
};

const app = express();
app.use((request, response, next) => request.get("authorization") === `Bearer ${RPC_APP_TOKEN}` ? next() : response.sendStatus(401));
app.use(express.json());
app.get("/rpc", (_, response) => response.json({ functions }));
app.post("/rpc/:module/:name", async ({ params, body }, response) => {
  try { response.json(await functions[`${params.module}.${params.name}`].run(...body.args) ?? null); }
  catch ({ name: kind, message, data }) { response.status(500).json({ kind, message, data }); }
});
app.listen(PORT, "127.0.0.1");
