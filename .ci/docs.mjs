// Reads and tries /docs as a person would: node docs.mjs URL TOKEN SCREENSHOT URL_WITH_APP
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chromium } from "playwright-core";

const [url, token, picture, urlWithApp] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
try {
  const page = await browser.newPage({ viewport: { width: 1100, height: 1400 } });
  const asked = [];
  const errors = [];
  // Every request passes here before it leaves; one for anybody else is noted and goes nowhere.
  await page.route("**", (route) => {
    asked.push(route.request());
    return route.request().url().startsWith(`${url}/`) ? route.continue() : route.abort();
  });
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));

  await page.goto(`${url}/docs`);
  const document = await (await fetch(`${url}/openapi.json`)).json();

  // Opens an operation, fills in its parameters and sends it: what was asked, and what was answered.
  const send = async (operationId, parameters = {}) => {
    const operation = page.locator(`.opblock[id$="-${operationId}"]`);
    if (!(await operation.getAttribute("class")).includes("is-open")) {
      await operation.locator(".opblock-summary-control").click();
    }
    for (const [name, value] of Object.entries(parameters)) {
      await operation.locator(`tr[data-param-name="${name}"] input`).fill(value);
    }
    const answered = page.waitForResponse((response) => response.request().resourceType() === "fetch");
    await operation.getByRole("button", { name: "Execute" }).click();
    const response = await answered;
    await operation.locator(".live-responses-table .response-col_status", { hasText: `${response.status()}` }).waitFor();
    const curl = await operation.locator(".curl").innerText();
    return { request: response.request(), status: response.status(), body: await response.text(), curl };
  };

  // Without a token.
  const refused = await send("callFunction");
  assert.deepEqual([refused.status, JSON.parse(refused.body).code], [401, "unauthenticated"]);
  assert.deepEqual(errors.splice(0).filter((error) => !error.includes("401")), []);

  // With it. The document is read again.
  const authorize = async (page) => {
    await page.getByRole("button", { name: "Authorize" }).first().click();
    await page.locator(".auth-container input").fill(token);
    const read = page.waitForResponse(/[/]openapi[.]json$/);
    await page.locator(".auth-container").getByRole("button", { name: "Apply credentials" }).click();
    await read;
    await page.getByRole("button", { name: "Close" }).click();
  };
  await authorize(page);

  // The first example of the body, as it is; a path parameter and headers.
  const headers = { "Idempotency-Key": "it's-1234", "rpc-route": "proxy", "x-request-id": "of-the-page" };
  const called = await send("callFunction", { region: "syd", ...headers });
  const { result, meta } = JSON.parse(called.body);
  assert.deepEqual([called.status, result, meta.region, meta.instance, meta.attempts], [200, 3, "syd", "syd-1", 1]);
  assert.deepEqual(JSON.parse(called.request.postData()), { module: "Kernel", function: "+", args: [1, 2] });
  const sent = await called.request.allHeaders();
  for (const [name, value] of Object.entries(headers)) assert.equal(sent[name.toLowerCase()], value, name);
  assert.equal(sent.authorization, `Bearer ${token}`);
  // The line to copy is one that a shell reads as it was sent.
  assert.ok(called.curl.includes("'Idempotency-Key: it'\\''s-1234'"), called.curl);
  // Nor does a program that is shown for it do anything else.
  assert.equal(await page.locator(".request-snippets .btn").count(), 3);
  const shown = page.locator('.opblock[id$="-callFunction"] .request-snippets');
  for (const [language, program] of [["Python", ["python3", "-c"]], ["TypeScript", ["node", "--input-type=module", "-e"]]]) {
    await shown.locator(".btn", { hasText: language }).click();
    const sample = await shown.locator(".curl").innerText();
    const said = execFileSync(program[0], [...program.slice(1), sample], { encoding: "utf8" });
    assert.match(said, /['"]?result['"]?: 3\b/, sample);
  }
  // Schemas are open, down to their members.
  await page.locator("section.models .json-schema-2020-12__title", { hasText: "Explanation" }).first().waitFor();
  await page.screenshot({ path: picture });

  // A query parameter goes into the query.
  const explained = await send("explainRegion", { region: "syd", function: "Kernel.+" });
  assert.equal(explained.request.url(), `${url}/regions/syd/explain?function=Kernel.%2B`);
  assert.equal(JSON.parse(explained.body).function, "Kernel.+");

  // Each of the other operations that ends, as it stands on the page.
  const operations = Object.values(document.paths).flatMap(Object.values).map((operation) => operation.operationId);
  assert.equal(await page.locator(".opblock").count(), operations.length);
  for (const operation of operations.filter((id) => !["callFunction", "explainRegion", "streamEvents"].includes(id))) {
    assert.equal((await send(operation, operation === "getRegion" ? { region: "syd" } : {})).status, 200, operation);
  }
  // The explanation of a problem's code, where its `type` points.
  await page.goto(url + JSON.parse(refused.body).type);
  assert.ok(await page.locator("tr:target", { hasText: "unauthenticated" }).isVisible());

  // The functions of an app are for who may list them.
  const withApp = await browser.newPage();
  await withApp.goto(`${urlWithApp}/docs`);
  const add = withApp.locator('.opblock[id$="-math_add"]');
  await withApp.locator('.opblock[id$="-callFunction"]').waitFor();
  assert.equal(await add.count(), 0);
  await authorize(withApp);
  await add.waitFor();
  await withApp.getByRole("button", { name: "Authorize" }).first().click();
  await withApp.locator(".auth-container").getByRole("button", { name: "Remove authorization" }).click();
  await add.waitFor({ state: "detached" });

  // As the attribute of an input a pattern is read with the flag v.
  const patterns = JSON.stringify(document).matchAll(/"pattern":("(?:[^"\\]|\\.)*")/g);
  for (const [, pattern] of patterns) new RegExp(JSON.parse(pattern), "v");
  assert.deepEqual(errors, []);
  assert.deepEqual(asked.map((request) => request.url()).filter((to) => !to.startsWith(`${url}/`)), []);
  console.log(`${asked.length} requests, all to the instance; ${operations.length - 1} operations answered; see ${picture}`);
} finally {
  await browser.close();
}
