// A client that openapi-typescript typed, with openapi-fetch: a call, a problem, the regions.
//
// FLY_RPC_URL names the instance to ask; FLY_RPC_TOKEN is a client's token, where the instance wants one.

import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

const token = process.env.FLY_RPC_TOKEN;
const client = createClient<paths>({
  baseUrl: process.env.FLY_RPC_URL,
  headers: token ? { authorization: `Bearer ${token}` } : {},
});

function call(region: string, body: components["schemas"]["CallRequest"]) {
  return client.POST("/rpc/{region}", { params: { path: { region } }, body });
}

const upcase = { module: "String", function: "upcase", args: ["fly"] };
const { data: reply, error: refused } = await call("syd", upcase);
if (!reply) throw new Error(refused.detail);
console.log(`result ${reply.result} from ${reply.meta.region}`);

const { error: problem } = await call("mars", upcase);
console.log(`problem ${problem?.code} executed ${problem?.executed}`);

const raise = { module: "Kernel", function: "raise", args: ["boom"] };
const { error: failed } = await call("syd", raise);
console.log(`error ${failed?.error?.kind}: ${failed?.error?.message} executed ${failed?.executed}`);

const { data: regions } = await client.GET("/regions");
console.log("regions", ...(regions?.regions ?? []).map(({ region }) => region));
