import { createServer } from "node:http";
import { setTimeout } from "node:timers/promises";

const { PORT, RPC_APP_TOKEN, FLY_RPC_URL, FLY_RPC_TOKEN } = process.env;

async function call(region, module, fn, ...args) { // in another region, through the instance beside this app
  const headers = { "content-type": "application/json", authorization: `Bearer ${FLY_RPC_TOKEN}` };
  const body = JSON.stringify({ module, function: fn, args });
  const answer = await (await fetch(`${FLY_RPC_URL}/rpc/${region}`, { method: "POST", headers, body })).json();
  return answer.result;
}

const functions = {
  "Math.add": (a, b) => a + b,
  "Demo.fail": (message) => { throw new RangeError(message); },
  "Demo.sleep": (ms) => setTimeout(ms),
  "Demo.add_in": (region, a, b) => call(region, "Math", "add", a, b),
};

createServer(async (request, response) => {
  const answer = (status, value) => response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value ?? null));
  if (request.headers.authorization !== `Bearer ${RPC_APP_TOKEN}`) return answer(401);
  if (request.method === "GET") return answer(200, { functions: Object.fromEntries(Object.keys(functions).map((name) => [name, {}])) });
  const name = request.url.split("/").slice(2).join("."); // /rpc/Math/add
  const { args } = JSON.parse(await new Response(request).text());
  try { answer(200, await functions[name](...args)); } catch ({ name: kind, message }) { answer(500, { kind, message }); }
}).listen(PORT, "127.0.0.1");
