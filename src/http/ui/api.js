// Sends requests to the instance that served the page, and to no other server. The token is in the memory of this module only.

/** Below what the instance's routes are: `/`, or the path at which a program passes its instances on. */
const base = new URL(".", location.href);
let token = "";

export const useToken = (given) => (token = given);

const headers = (more) => (token ? { ...more, authorization: `Bearer ${token}` } : more);

/** What went wrong with a request: a problem of the instance, or of the way to it. */
export class Trouble extends Error {
  constructor(status, problem, text) {
    super(problem.detail);
    Object.assign(this, { status, problem, text });
  }
}

const noAnswer = (status, detail) => new Trouble(status, { detail, code: "no_answer", executed: "maybe" });
const lost = () => {
  throw noAnswer(0, "this instance does not answer");
};

async function sent(path, options) {
  const response = await fetch(new URL(path, base), { cache: "no-store", ...options }).catch(lost);
  if (response.ok) return response;
  const [problem, text] = await response.text().then((text) => [JSON.parse(text), text]).catch(() => []);
  // What stands in front of the instance has answers of its own.
  if (!problem?.executed) throw noAnswer(response.status, `it answered with status ${response.status}`);
  throw new Trouble(response.status, problem, text);
}

/** The JSON at `path`. */
export async function get(path) {
  const response = await sent(path, { headers: headers({}) });
  return response.json().catch(lost);
}

/** What comes of sending `body` to `path`, as text: a browser would round the numbers of a parsed one. */
export async function post(path, body) {
  const options = { method: "POST", headers: headers({ "content-type": "application/json" }), body };
  const response = await sent(path, options);
  return response.text().catch(lost);
}

/** The events of the instance, until the stream ends. An `EventSource` could not send the token. */
export async function* events(lastId) {
  const response = await sent("events", { headers: headers(lastId ? { "last-event-id": lastId } : {}) });
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
