// A client that openapi-typescript typed, with openapi-fetch: a call, a problem, the regions, the functions of an app.
//
// FLY_RPC_URL names the instance to ask; FLY_RPC_TOKEN is a client's token, where the instance wants one. NOTES_URL names an
// instance beside the app.

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
// Only a call that prefers respond-async is answered before it has a result.
if (!("result" in reply)) throw new Error("no result");
console.log(`result ${reply.result} from ${reply.meta.region}`);

const { error: problem } = await call("mars", upcase);
console.log(`problem ${problem?.code} executed ${problem?.executed}`);

const raise = { module: "Kernel", function: "raise", args: ["boom"] };
const { error: failed } = await call("syd", raise);
console.log(`error ${failed?.error?.kind}: ${failed?.error?.message} executed ${failed?.executed}`);

const { data: regions } = await client.GET("/regions");
console.log("regions", ...(regions?.regions ?? []).map(({ region }) => region));

const notes = createClient<paths>({ baseUrl: process.env.NOTES_URL });

function create(region: string, body: components["schemas"]["NotesCreateArgs"]) {
  return notes.POST("/rpc/{region}/Notes/create", { params: { path: { region } }, body });
}

const { data: created } = await create("syd", { title: "Milk", tags: ["dairy", "cold"] });
const { data: counted } = await notes.POST("/rpc/{region}/Notes/count", { params: { path: { region: "iad" } } });
if (!created || !counted) throw new Error("no note");
const { number, title } = created.result;
console.log(`note ${number} ${title} from ${created.meta.region}, ${counted.result} in ${counted.meta.region}`);

const { error: untitled } = await create("syd", { title: "", tags: [] });
console.log(`error ${untitled?.error?.kind}: ${untitled?.error?.message} executed ${untitled?.executed}`);
