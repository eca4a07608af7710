// What the operator's page does. How it shows things is in view.js.

import { $, age, button, cell, figureRows, make, replaceRows, save, showAudit, showOutcome, showPictures, when } from "./view.js";

const LOOK_EVERY = 5000; // ms
const TOKEN = "safeflux-token";

let seen = null; // the last answer of /policies
let shown = null; // the name of the policy whose categories are shown
let loaded = ""; // the text of the editor that is in force
let isAway = false; // whether the last regular look failed
let tried = null; // {name, text, revision} of the last preview: only this can be put in force

async function ask(method, path, { body, json, headers = {} } = {}) {
  const options = { method, headers: { authorization: `Bearer ${sessionStorage.getItem(TOKEN)}`, ...headers }, cache: "no-store" };
  if (json !== undefined) {
    options.body = JSON.stringify(json);
    options.headers["content-type"] = "application/json";
  } else if (body !== undefined) options.body = body;
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the service cannot be reached");
  }
  const value = await answer.json().catch(() => ({}));
  if (answer.ok) return value;
  throw Object.assign(new Error(value.detail || `HTTP ${answer.status}`), { status: answer.status });
}

function complain(error) {
  $("message").hidden = !error;
  $("message").textContent = error ? error.message : "";
  if (error) $("message").scrollIntoView({ block: "nearest" });
  if (error?.status === 401 || error?.status === 403) signOut(false);
}

function busily(action, what) {
  return async (event) => {
    event?.preventDefault();
    complain(null);
    const buttons = [...document.querySelectorAll("#console button")];
    const before = buttons.map((each) => each.disabled);
    const focused = document.activeElement;
    buttons.forEach((each) => (each.disabled = true));
    $("busy").textContent = what;
    try {
      await action();
    } catch (error) {
      complain(error);
    }
    $("busy").textContent = "";
    buttons.forEach((each, k) => (each.disabled = before[k]));
    allow();
    focused?.focus();
  };
}

function allow() {
  const writes = Boolean(seen?.writes);
  const fits = tried && tried.name === $("name").value && tried.text === $("text").value;
  $("put").disabled = !(writes && fits);
  $("check").disabled = $("preview").disabled = !writes;
  $("roll-back").disabled = !(writes && seen.older);
  $("no-writes").hidden = writes;
}

function showState() {
  const { state, faults } = seen.health;
  $("state").textContent = state;
  $("state").className = `badge ${state === "GUARDED" ? "good" : "bad"}`;
  $("model").textContent = seen.model;
  $("revision").textContent = `revision ${seen.revision}${seen.by === "start" ? "" : `, by ${seen.by}`}`;
  const reasons = [...(seen.fault ? [`The folder of policies is not in force: ${seen.fault}`] : []), ...faults];
  $("fault").hidden = !reasons.length;
  $("fault").textContent = reasons.join("\n");
}

function showPolicies() {
  const rows = seen.policies.map((policy) => {
    const row = make("tr");
    const title = cell("Policy", "");
    const inner = make("div", policy.name);
    if (policy.name === seen.default) inner.append(" ", make("span", "default", { class: "badge" }));
    inner.append(make("small", policy.description));
    title.append(inner);
    const since = cell("Since", "");
    const time = make("div", age(policy.since));
    time.append(make("small", when(policy.since)));
    since.append(time);
    const categories = policy.plan ? Object.keys(policy.plan.categories).join(", ") : "";
    const digest = cell("Digest", policy.sha256.slice(0, 12), "mono");
    digest.title = policy.sha256;
    const actions = cell("", "", "action");
    actions.append(button("Categories", `Categories of ${policy.name}`, () => showFigures(policy.name)));
    if (!policy.fixed) actions.append(" ", button("Edit", `Edit ${policy.name}`, () => edit(policy.name)));
    row.append(title, since, cell("Categories", categories), digest, actions);
    return row;
  });
  replaceRows("policies", rows);
}

function showFigures(name) {
  shown = name;
  const policy = seen.policies.find((each) => each.name === name);
  $("categories").textContent = `Categories of ${name}`;
  replaceRows("figures", policy?.plan ? figureRows(policy.plan) : []);
}

async function edit(name) {
  const text = $("text").value;
  const discard = () => confirmed("Discard your text?", "The editor holds a text that is not in force.", "Discard");
  if (text.trim() && text !== loaded && !(await discard())) return;
  try {
    const found = await ask("GET", `/policies/${name}`);
    $("name").value = name;
    $("text").value = loaded = found.text;
    allow();
    $("text").focus();
  } catch (error) {
    complain(error);
  }
}

const path = () => `/policies/${encodeURIComponent($("name").value)}`;

async function check() {
  showOutcome(await ask("PUT", `${path()}?dry_run=1`, { body: $("text").value }));
}

async function preview() {
  if (!$("editor").reportValidity()) return;
  const [name, text] = [$("name").value, $("text").value];
  const prompts = $("prompts").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const found = await ask("POST", `${path()}/preview`, { json: { text, prompts: prompts.length ? prompts : null } });
  tried = { name, text, revision: found.revision };
  showOutcome(found);
  showPictures(found.pictures);
}

function confirmed(title, text, yes) {
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = yes;
  $("confirm").returnValue = "no";
  $("confirm").showModal();
  return new Promise((done) => $("confirm").addEventListener("close", () => done($("confirm").returnValue === "yes"), { once: true }));
}

async function put() {
  const { name, text, revision } = tried;
  const sure = await confirmed(`Put ${name} in force?`, "From the next picture on. The policies before stay one roll back away.", "Put in force");
  if (!sure) return;
  await ask("PUT", `/policies/${name}`, { body: text, headers: { "if-match": String(revision) } });
  tried = null;
  loaded = text;
  await look();
  showFigures(name);
  $("outcome").replaceChildren(make("p", `${name} is in force.`));
  $("pictures").replaceChildren();
}

async function rollBack() {
  if (!(await confirmed("Roll back?", `To the policies before revision ${seen.revision}.`, "Roll back"))) return;
  await ask("POST", "/rollback", { headers: { "if-match": String(seen.revision) } });
  await look();
}

async function look() {
  const before = seen?.revision;
  seen = await ask("GET", "/policies");
  if (!("revision" in seen)) throw Object.assign(new Error("this token is not an operator's"), { status: 403 });
  showState();
  showPolicies();
  const names = seen.policies.map((policy) => policy.name);
  if (before !== seen.revision || !names.includes(shown)) {
    showFigures(names.includes(shown) ? shown : seen.default);
    await lookAtLog();
  }
  $("console").hidden = $("sign-out").hidden = false;
  $("sign-in").hidden = true;
}

async function lookAtLog() {
  try {
    showAudit(await ask("GET", "/audit"));
  } catch (error) {
    if (error.status !== 404) throw error;
    $("head").textContent = error.message;
    $("receipt").disabled = false;
  }
}

async function lookRegularly() {
  if (!seen || document.hidden) return;
  try {
    await look();
    allow();
    if (isAway) complain(null);
    isAway = false;
  } catch (error) {
    if (!isAway) complain(error);
    isAway = true;
    $("state").textContent = "state unknown"; // what was seen last may no longer be so
    $("state").className = "badge bad";
  }
}

function signOut(isAsked = true) {
  sessionStorage.removeItem(TOKEN);
  seen = tried = null;
  $("console").hidden = $("sign-out").hidden = true;
  $("sign-in").hidden = false;
  if (isAsked) complain(null);
  $("token").focus();
}

async function start() {
  if (!sessionStorage.getItem(TOKEN)) return signOut();
  await look().catch(complain);
  allow();
}

$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  complain(null);
  sessionStorage.setItem(TOKEN, $("token").value);
  $("token").value = "";
  start();
});
$("sign-out").addEventListener("click", () => signOut());
$("editor").addEventListener("submit", busily(check, "Checking …"));
$("editor").addEventListener("input", allow);
$("preview").addEventListener("click", busily(preview, "Drawing …"));
$("put").addEventListener("click", busily(put, "Putting in force …"));
$("roll-back").addEventListener("click", busily(rollBack, "Rolling back …"));
$("receipt").addEventListener("click", busily(async () => save(await ask("GET", "/receipt"), "receipt.json"), "Reading …"));
setInterval(lookRegularly, LOOK_EVERY);
start();
