// Swagger UI over this instance's own document; what is tried goes to the instance that served the page.

/** The request that was sent, for a sample of it in a language. */
const sent = (request) => ({
  url: request.get("url"),
  method: request.get("method"),
  headers: request.get("headers")?.entrySeq().toArray() ?? [],
  body: request.get("body"),
});
// A string of JSON is one of Python and of TypeScript.
const quoted = JSON.stringify;

function python(request) {
  const { url, method, headers, body } = sent(request);
  return [
    "import json, urllib.error, urllib.request",
    "",
    `request = urllib.request.Request(${quoted(url)}, method=${quoted(method)})`,
    ...headers.map(([name, value]) => `request.add_header(${quoted(name)}, ${quoted(value)})`),
    ...(body ? [`request.data = ${quoted(body)}.encode()`] : []),
    "try:",
    "    answer = json.load(urllib.request.urlopen(request))",
    "except urllib.error.HTTPError as problem:",
    "    answer = json.load(problem)",
    "print(answer)",
  ].join("\n");
}

function typescript(request) {
  const { url, method, headers, body } = sent(request);
  return [
    `const response = await fetch(${quoted(url)}, {`,
    `  method: ${quoted(method)},`,
    `  headers: ${quoted(Object.fromEntries(headers))},`,
    ...(body ? [`  body: ${quoted(body)},`] : []),
    "});",
    "console.log(response.status, await response.json());",
  ].join("\n");
}

const samples = () => ({
  fn: { requestSnippetGenerator_python: python, requestSnippetGenerator_typescript: typescript },
});

/** The document, as whoever has `token` may read it: with the functions of the cluster that declare their parameters. */
async function description(token) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const document = await (await fetch("openapi.json", { headers })).json();
  return { ...document, servers: [{ url: new URL(".", location).href.slice(0, -1), description: "This instance" }] };
}

// Who authorizes reads the document that is for them, and who logs out that for everybody.
const anew = (system) => {
  const show = async (token) => system.specActions.updateSpec(JSON.stringify(await description(token)));
  return {
    statePlugins: {
      auth: {
        wrapActions: {
          authorize: (authorize) => (credentials) => {
            show(Object.values(credentials)[0]?.value);
            return authorize(credentials);
          },
          logout: (logout) => (names) => {
            show();
            return logout(names);
          },
        },
      },
    },
  };
};

description().then((spec) => SwaggerUIBundle({
  dom_id: "#docs",
  spec,
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  defaultModelExpandDepth: 4,
  defaultModelsExpandDepth: 2,
  plugins: [samples, anew],
  requestSnippetsEnabled: true,
  requestSnippets: {
    languages: ["curl_bash", "python", "typescript"],
    generators: {
      curl_bash: { title: "curl", syntax: "bash" },
      python: { title: "Python", syntax: "python" },
      typescript: { title: "TypeScript", syntax: "javascript" },
    },
  },
  // No badge of a validator on another host.
  validatorUrl: null,
}));
