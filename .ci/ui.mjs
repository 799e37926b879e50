// Reads and tries /ui as a person would: node ui.mjs URL TOKEN PAGE FOLDER
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { chromium } from "playwright-core";

const [guarded, token, address, pictures] = process.argv.slice(2);
const axe = await readFile(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf8");
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});

const asked = [];
const errors = [];

/** A page whose requests are noted before they leave; one to another origin is aborted. `prepare` gets it before it is loaded. */
async function open(url, options = {}, prepare = async () => {}) {
  const { origin } = new URL(url);
  const page = await browser.newPage({ viewport: { width: 1200, height: 900 }, ...options });
  await page.route("**", (route) => {
    const to = route.request().url();
    asked.push(to);
    if (to.startsWith(`${origin}/`)) return route.continue();
    errors.push(`asked ${to}`);
    return route.abort();
  });
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.setDefaultTimeout(20_000);
  await prepare(page);
  await page.goto(url);
  return page;
}

async function accessible(page, what) {
  // By the driver, which the page's policy does not bind.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ target }) => target).join(" ")}`);
  assert.deepEqual(found, [], what);
}

const text = (page, selector) => page.locator(selector).innerText();

/** Does something, and waits until the page shows `what` because of it: how long that took. */
async function shows(page, what, act) {
  // On the page's own clock: the driver sees it later than people do.
  const seen = page.evaluate((what) => new Promise((resolve) => {
    const look = () => (document.body.innerText.includes(what) ? resolve(performance.now()) : requestAnimationFrame(look));
    look();
  }), what);
  const before = await page.evaluate(() => performance.now());
  await act();
  return (await seen) - before;
}

async function withToken() {
  const page = await open(`${guarded}/ui`);
  await page.locator("#token").waitFor();
  assert.deepEqual(errors.splice(0).filter((error) => !error.includes("401")), []);
  await accessible(page, "the form for the token");
  await page.keyboard.type("not-the-token");
  await page.keyboard.press("Enter");
  await page.locator("#token-error", { hasText: "no client has the token" }).waitFor();
  assert.deepEqual(errors.splice(0).filter((error) => !error.includes("401")), []);
  await page.locator("#token").fill(token);
  await page.keyboard.press("Enter");
  await page.locator("#connection", { hasText: /^live$/ }).waitFor();
  assert.equal(await page.locator("#token-form").isVisible(), false);
  assert.match(await text(page, "#self"), /^syd-1 in syd \(Sydney\)/);
  // In memory only.
  const kept = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href]));
  assert.ok(!kept.includes(token), kept);
  await page.reload();
  await page.locator("#token").waitFor();
  assert.deepEqual(errors.splice(0).filter((error) => !error.includes("401")), []);
  await page.close();
}

async function call(page, name, region, args) {
  await page.locator("#function").fill(name);
  await page.locator("#region").fill(region);
  await page.locator("#args").fill(args);
  await page.getByRole("button", { name: "Call", exact: true }).click();
}

async function ofTheCluster() {
  const page = await open(address);
  await page.locator("#connection", { hasText: /^live$/ }).waitFor();
  assert.match(await text(page, "#self"), /^iad-1 in iad \(Ashburn\), the primary region/);
  assert.equal(await page.locator("#map .place").count(), 6);
  assert.equal(await page.locator("#instances tr").count(), 8);
  await page.locator("#trouble", { hasText: "Nothing that this instance knows of." }).waitFor();

  // A call from the form, seen in the answer, on the map and among the calls.
  await call(page, "Kernel.+", "syd", "[1, 9007199254740992]");
  await page.locator("#answer p", { hasText: /^iad-1 → syd-\d in syd: 1 attempt/ }).waitFor();
  assert.match(await text(page, "#answer pre"), /"result":9007199254740993/);
  assert.equal(await page.locator("#map .arc.chosen").count(), 1);
  await page.locator("#calls tr", { hasText: /Kernel\.\+\s*iad-1 → syd-\d in syd\s*a result\s*it ran/ }).first().waitFor();
  await call(page, "Kernel.raise", "fra", '["no"]');
  await page.locator("#answer p.bad", { hasText: "function_failed, it ran: " }).waitFor();
  assert.match(await text(page, "#answer pre"), /^\{.*"code":"function_failed"/s);
  await page.locator("#trouble", { hasText: "Of 1 calls for fra in the last minute 1 failed: 1 function_failed (it ran)." }).waitFor();
  await call(page, "Kernel.+", "mars", "[1, 2]");
  await page.locator("#answer p.bad", { hasText: "region_unknown, it did not run" }).waitFor();
  await page.locator("#each").check();
  await call(page, "Fly.RPC.my_region", "all", "[]");
  await page.locator("#answer p.ready", { hasText: "8 of 8 answered well" }).waitFor();
  assert.equal(await page.locator("#answer tr").count(), 8);
  assert.equal(await page.locator("#map .arc.chosen").count(), 5);
  await call(page, "Kernel.+", "all", "[9007199254740992, 1]");
  await page.locator("#answer td", { hasText: /^9007199254740993$/ }).first().waitFor();
  await page.locator("#each").uncheck();
  await call(page, "Kernel.+", "syd", "[1,");
  await page.locator("#answer p.bad", { hasText: "not sent, it did not run: the arguments are not JSON" }).waitFor();
  await call(page, "upcase", "syd", "[]");
  await page.locator("#answer p.bad", { hasText: "not sent, it did not run: a function is Module.function" }).waitFor();
  assert.deepEqual(errors.splice(0).filter((error) => !/ (404|424) /.test(error)), []);

  // An instance is killed: the page shows it within a second, on a machine that is not busy.
  let took = Infinity;
  for (let tries = 0; tries < 3 && took > 1000; tries++) {
    if (tries > 0) {
      await page.getByRole("button", { name: "start syd-2" }).click();
      await page.locator("#trouble", { hasText: "syd-2" }).waitFor({ state: "hidden" });
    }
    took = await shows(page, "syd-2 in syd is suspect", () => page.getByRole("button", { name: "kill syd-2" }).click());
    console.log(`a killed instance is shown after ${Math.round(took)} ms`);
  }
  assert.ok(took < 1000, `${took} ms`);
  await page.locator("#dev-said", { hasText: "syd-2 is killed" }).waitFor();
  await accessible(page, "with an instance that is gone");

  // With the keyboard: from the start over the map to the explanation of a region.
  await page.reload();
  await page.locator("#connection", { hasText: /^live$/ }).waitFor();
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip the map");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "instances-title");
  await page.locator('#map .place[aria-label^="syd"]').focus();
  await page.keyboard.press("Enter");
  await page.locator("#explain-title", { hasText: "Where calls for syd go" }).waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.id), "explain-title");
  const gone = page.locator("#candidates tr", { hasText: "syd-2" });
  assert.match(await gone.innerText(), /no\s+suspect: used only when no ready one is left/);
  await accessible(page, "with an explanation");

  // Narrow: tables scroll, the page does not.
  await page.setViewportSize({ width: 320, height: 700 });
  const [needed, has] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
  assert.ok(needed <= has, `${needed} px in ${has}`);
  await accessible(page, "320 px wide");
  await page.setViewportSize({ width: 1200, height: 900 });

  // A second one of the region goes: each is shown once, and neither when both are back.
  await page.getByRole("button", { name: "kill syd-3" }).click();
  for (const name of ["syd-2", "syd-3"]) await page.locator("#trouble li", { hasText: `${name} in syd is suspect` }).waitFor();
  await page.waitForTimeout(2500);
  assert.equal(await page.locator("#trouble li").count(), 2);
  for (const name of ["syd-2", "syd-3"]) {
    await page.getByRole("button", { name: `start ${name}` }).click();
    await page.locator("#dev-said", { hasText: `${name} is back` }).waitFor();
  }
  await page.locator("#trouble", { hasText: "Nothing that this instance knows of." }).waitFor();
  assert.equal(await page.locator("#trouble li").count(), 1);

  // The instance that the page shows goes and comes back.
  assert.deepEqual(errors.splice(0), []);
  const running = page.locator("#running", { hasText: /^1$/ });
  await call(page, "Process.sleep", "iad", "[20000]");
  await running.waitFor();
  await page.getByRole("button", { name: "kill iad-1" }).click();
  await page.locator("#answer p.bad", { hasText: "no_answer, it may have run: it answered with status 502" }).waitFor();
  await page.locator("#connection", { hasText: "not live" }).waitFor();
  await page.getByRole("link", { name: "as syd-1 sees it" }).click();
  await page.locator("#self", { hasText: "syd-1 in syd" }).waitFor();
  await page.locator("#trouble", { hasText: "iad-1 in iad is suspect" }).waitFor();
  await page.getByRole("button", { name: "start iad-1" }).click();
  await page.locator("#dev-said", { hasText: "iad-1 is back" }).waitFor();
  await page.locator("#trouble", { hasText: "Nothing that this instance knows of." }).waitFor();
  assert.deepEqual(errors.splice(0).filter((error) => !/ 502 /.test(error)), []);
  await page.close();
}

/** An instance refuses what the page asks first, as where clients keep all its connections busy; the page goes on to ask. */
async function whileBusy() {
  const problem = { detail: "no place is left", code: "overloaded", executed: "no" };
  const refuse = (page) => page.route("**/regions", (route) => route.fulfill({ status: 503, json: problem }), { times: 1 });
  const page = await open(address, {}, refuse);
  await page.locator("#self", { hasText: "no place is left" }).waitFor();
  await page.locator("#connection", { hasText: /^live$/ }).waitFor();
  await call(page, "Kernel.+", "iad", "[1, 2]");
  await page.locator("#calls tr", { hasText: "Kernel.+" }).waitFor();
  assert.deepEqual(errors.splice(0).filter((error) => !/ 503 /.test(error)), []);
  await page.close();
}

/** The cluster with an instance that is gone and calls on their way, in both colours. */
async function takePictures() {
  for (const colorScheme of ["light", "dark"]) {
    const page = await open(address, { colorScheme, viewport: { width: 1000, height: 1060 } });
    await page.locator("#connection", { hasText: /^live$/ }).waitFor();
    if (colorScheme === "light") await page.getByRole("button", { name: "kill syd-2" }).click();
    await page.locator("#trouble", { hasText: "syd-2 in syd is suspect" }).waitFor();
    // Goes on while the picture is taken.
    await page.evaluate(() => {
      const send = (region, name, args) => fetch(`rpc/${region}`, {
        method: "POST", headers: { "content-type": "application/json" },
        body: JSON.stringify({ module: name.split(".")[0], function: name.split(".")[1], args }),
      });
      const some = [["syd", "String.upcase", ["fly"]], ["nrt", "String.reverse", ["fly"]], ["fra", "String.length", ["fly"]],
        ["lhr", "Process.sleep", [20]], ["constructor", "Kernel.+", [1, 2]], ["iad", "String.trim", [" fly "]]];
      setInterval(() => some.forEach((one) => send(...one)), 140);
    });
    await call(page, "String.upcase", "syd", '["fly"]');
    await page.locator("#answer p.ready").waitFor();
    await accessible(page, colorScheme);
    await page.waitForTimeout(3000);
    await page.evaluate(() => (document.getElementById("dev").hidden = true) && scrollTo(0, 0));
    await page.screenshot({ path: `${pictures}/ui-${colorScheme}.png` });
    await page.close();
  }
}

try {
  await withToken();
  await ofTheCluster();
  await whileBusy();
  await takePictures();
  assert.deepEqual(errors, []);
  console.log(`${asked.length} requests, each to the origin of its page; see ${pictures}/ui-light.png and ui-dark.png`);
} finally {
  await browser.close();
}
