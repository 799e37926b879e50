// Reads and tries /docs as a person would: node docs.mjs URL TOKEN SCREENSHOT
import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [url, token, picture] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
try {
  const page = await browser.newPage({ viewport: { width: 1000, height: 1300 } });
  const asked = [];
  const errors = [];
  // Every request passes here before it leaves; one for anybody else is told and goes nowhere.
  await page.route("**", (route) => {
    asked.push(route.request().url());
    return route.request().url().startsWith(`${url}/`) ? route.continue() : route.abort();
  });
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));

  await page.goto(`${url}/docs`);
  const call = page.locator("details", { hasText: "Call a function in a region" }).first();
  const send = async (status) => {
    await call.getByRole("button", { name: "Send" }).click();
    const answer = call.locator("div", { hasText: " ms" }).first();
    await answer.getByText(String(status), { exact: false }).first().waitFor();
    return { command: await answer.locator("pre").first().innerText(), json: await answer.locator("pre").last().innerText() };
  };

  const refused = JSON.parse((await send(401)).json);
  assert.deepEqual([refused.status, refused.code, refused.executed], [401, "unauthenticated", "no"]);
  assert.deepEqual(errors.splice(0).filter((error) => !error.includes("401")), []);

  await page.getByLabel("Client's token").fill(token);
  const answer = await send(200);
  const { result, meta } = JSON.parse(answer.json);
  assert.deepEqual([result, meta.region, meta.instance, meta.attempts], ["FLY", "syd", "syd-1", 1]);
  assert.ok(answer.command.startsWith(`curl -s ${url}/rpc/syd `) && !answer.command.includes(token), answer.command);
  await page.screenshot({ path: picture });

  // Each of the other operations, as it stands on the page.
  const operations = await page.locator("details:has(> p > button)").all();
  for (const operation of operations) {
    await operation.evaluate((details) => { details.open = true; });
    await operation.getByRole("button", { name: "Send" }).click();
    await operation.locator("div b.post").first().waitFor();
  }
  const { paths } = await (await fetch(`${url}/openapi.json`)).json();
  assert.equal(operations.length, Object.values(paths).flatMap(Object.keys).length);
  assert.deepEqual(errors, []);
  assert.deepEqual(asked.filter((to) => !to.startsWith(`${url}/`)), []);
  console.log(`${asked.length} requests, all to the instance; ${operations.length} operations answered; see ${picture}`);
} finally {
  await browser.close();
}
