// Sends requests to the instance that served the page, and to no other server. The token is in the memory of this module only.

/** Below what the instance's routes are: `/`, or the path at which a program passes its instances on. */
const base = new URL(".", location.href);
let token = "";

export const useToken = (given) => (token = given);

const headers = (more) => (token ? { ...more, authorization: `Bearer ${token}` } : more);

/** What went wrong with a request: a problem of the instance, or of the way to it. */
export class Trouble extends Error {
  constructor(status, problem) {
    super(problem.detail);
    Object.assign(this, { status, problem });
  }
}

async function sent(path, options) {
  try {
    return await fetch(new URL(path, base), { cache: "no-store", ...options });
  } catch (error) {
    throw new Trouble(0, { detail: "this instance does not answer", code: "no_answer", executed: "maybe" });
  }
}

async function troubleOf(response) {
  const problem = await response.json().catch(() => ({ detail: `it answered with status ${response.status}` }));
  return new Trouble(response.status, problem);
}

/** The JSON at `path`. */
export async function get(path) {
  const response = await sent(path, { headers: headers({}) });
  if (!response.ok) throw await troubleOf(response);
  return response.json();
}

/** What comes of sending `body` to `path`, as text: a browser would round the numbers of a parsed one. */
export async function post(path, body) {
  const options = { method: "POST", headers: headers({ "content-type": "application/json" }), body };
  const response = await sent(path, options);
  if (!response.ok) throw await troubleOf(response);
  return response.text();
}

/** The events of the instance, until the stream ends. An `EventSource` could not send the token. */
export async function* events(lastId) {
  const response = await sent("events", { headers: headers(lastId ? { "last-event-id": lastId } : {}) });
  if (!response.ok) throw await troubleOf(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const fields = Object.fromEntries(part.split("\n").map((line) => line.split(/: (.*)/s)));
      yield { id: fields.id, name: fields.event, data: JSON.parse(fields.data) };
    }
  }
}
