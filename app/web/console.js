"use strict";

// Everything shown is a text node or an attribute set by name, never markup: what users stored cannot run here.

const KEY_NAME = "shieldx.key"; // sessionStorage, so the key ends with the tab
const REFRESH_MS = 5000;
const PAGE_ROWS = 25;
const RECEIPT_TRIES = 8;
const RECEIPT_PAUSE_MS = 500; // an entry is signed within a second
const SVG = "http://www.w3.org/2000/svg";
const numbers = new Intl.NumberFormat("en-US");
const view = document.getElementById("view");
const readiness = document.getElementById("readiness");

class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `The server answered ${status}.`);
    this.status = status;
    this.code = body.code || "";
  }
}

async function call(method, path, body) {
  const headers = { Accept: "application/json" };
  const key = sessionStorage.getItem(KEY_NAME);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (method !== "GET") headers["Idempotency-Key"] = `console-${crypto.randomUUID()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const text = await answer.text();
  const json = (answer.headers.get("Content-Type") || "").includes("json");
  if (!answer.ok && path !== "/ready") throw new Problem(answer.status, json ? JSON.parse(text) : {});
  return json ? JSON.parse(text) : text;
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (attribute.startsWith("on")) made.addEventListener(attribute.slice(2), value);
    else made.setAttribute(attribute, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const path = (...parts) => parts.map(encodeURIComponent).join("/");
const link = (text, ...parts) => element("a", { href: `#/${path(...parts)}` }, text);
const number = (value) => (value === null || value === undefined ? "" : numbers.format(value));
const percent = (value) => (value === null || value === undefined ? "" : `${(100 * value).toFixed(2)} %`);
const time = (text) => (text ? text.replace("T", " ").replace(/\.\d+Z$/, " UTC") : "");
const tone = (good) => (good ? "good" : "bad");

// columns: [title, row => text or node, "number"?]
function table(columns, rows, empty) {
  if (!rows.length) return element("p", { class: "soft" }, empty);
  const heads = columns.map(([title, , kind]) => element("th", { scope: "col", class: kind || "" }, title));
  const lines = rows.map((row) =>
    element("tr", {}, columns.map(([, cell, kind]) => element("td", { class: kind || "" }, cell(row))))
  );
  return element("table", {}, element("thead", {}, element("tr", {}, heads)), element("tbody", {}, lines));
}

function figures(pairs) {
  const boxes = pairs.map(([title, value]) => element("div", {}, title, element("b", {}, value)));
  return element("div", { class: "figures" }, boxes);
}

// fields: [name, label, type]; act gets an object of texts and returns what to say.
function actionForm(title, fields, act) {
  const say = element("span", { role: "status" });
  const button = element("button", {}, title);
  const inputs = fields.map(([name, label, type]) =>
    element("input", { name, type, placeholder: label, "aria-label": label, required: "" })
  );
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      say.textContent = await act(Object.fromEntries(inputs.map((input) => [input.name, input.value.trim()])));
      say.className = "good";
      event.target.reset();
    } catch (error) {
      say.textContent = error.message;
      say.className = "bad";
    }
    button.disabled = false;
  };
  return element("form", { onsubmit: submit }, inputs, button, say);
}

// A list that grows by a page at a time, by the server's cursor.
async function pages(address, columns, empty) {
  const place = element("div");
  const rows = [];
  const more = element("button", { type: "button", onclick: () => turn() }, "More");
  let cursor = null;
  async function turn() {
    const wanted = new URLSearchParams(cursor ? { limit: PAGE_ROWS, cursor } : { limit: PAGE_ROWS });
    const page = await call("GET", `${address}${address.includes("?") ? "&" : "?"}${wanted}`);
    rows.push(...page.data);
    cursor = page.next_cursor;
    place.replaceChildren(table(columns, rows, empty), cursor ? more : "");
  }
  await turn();
  return place;
}

async function showStatus() {
  const ready = await call("GET", "/ready");
  const checks = Object.entries(ready.checks).map(([name, check]) => ({ name, ...check }));
  const parts = [
    element("h1", {}, ready.status === "ready" ? "Ready" : `Waiting for ${ready.waiting_for.join(", ")}`),
    table(
      [
        ["Part", (row) => row.name],
        ["State", (row) => element("span", { class: tone(row.state === "ok") }, row.state)],
        ["ms", (row) => number(row.ms), "number"],
        ["Reason", (row) => row.reason || ""],
      ],
      checks, "No part reports."
    ),
  ];
  if (sessionStorage.getItem(KEY_NAME)) parts.push(...(await ledgerParts()));
  else parts.push(element("p", { class: "notice" }, "Enter an API key above to see more; `shieldx key` prints one."));
  return parts;
}

async function ledgerParts() {
  const [balance, alerts] = await Promise.all([
    call("GET", "/v1/ledger/trial-balance"),
    pages("/v1/alerts", [
      ["Time", (row) => time(row.created_at)],
      ["Alert", (row) => row.type],
      ["Tenant", (row) => link(row.tenant_id, "accounts", row.tenant_id)],
    ], "No alert has been raised."),
  ]);
  const accounts = Object.entries(balance.accounts).concat([["tenants", balance.tenants]]);
  return [
    element("h2", {}, "Trial balance"),
    figures([...accounts.map(([name, value]) => [name, number(value)]), ["total", number(balance.total)]]),
    element("p", { class: tone(balance.total === 0) },
      balance.total === 0 ? "All accounts add up to zero." : "The ledger does not add up to zero."),
    element("h2", {}, "Alerts"), alerts,
  ];
}

async function showAccounts() {
  const list = await pages("/v1/accounts", [
    ["Tenant", (row) => link(row.tenant_id, "accounts", row.tenant_id)],
    ["Balance", (row) => number(row.balance), "number"],
    ["Reserved", (row) => number(row.reserved), "number"],
    ["Available", (row) => number(row.available), "number"],
    ["Changed", (row) => time(row.updated_at)],
  ], "There is no account yet.");
  const open = actionForm("Open", [["tenant", "Tenant id", "text"]], async ({ tenant }) => {
    location.hash = `#/${path("accounts", tenant)}`;
    return "";
  });
  const create = actionForm("Create account", [["tenant", "New tenant id", "text"]], async ({ tenant }) => {
    const made = await call("POST", "/v1/accounts", { tenant_id: tenant });
    location.hash = `#/${path("accounts", made.tenant_id)}`;
    return "Created.";
  });
  return [element("h1", {}, "Accounts"), open, create, list];
}

function moveForm(title, address, tenant) {
  return actionForm(title, [["amount", "Amount in credits", "number"]], async ({ amount }) => {
    const done = await call("POST", address, { tenant_id: tenant, amount: Number(amount) });
    setTimeout(render, 0);
    return `Done: transaction ${done.transaction_id}.`;
  });
}

async function showAccount(tenant) {
  const address = `/v1/accounts/${encodeURIComponent(tenant)}`;
  const [account, history, holds] = await Promise.all([
    call("GET", address),
    pages(`${address}/transactions`, [
      ["Time", (row) => time(row.created_at)],
      ["Type", (row) => row.type],
      ["Amount", (row) => number(row.amount), "number"],
      ["Balance after", (row) => number(row.balance), "number"],
      ["Transaction", (row) => link(row.transaction_id, "audit", row.transaction_id)],
    ], "Nothing has moved yet."),
    pages(`${address}/reservations?status=held`, [
      ["Reservation", (row) => row.reservation_id],
      ["Amount", (row) => number(row.amount), "number"],
      ["Expires", (row) => time(row.expires_at)],
    ], "Nothing is reserved."),
  ]);
  const facts = [
    ["Available", number(account.available)], ["Balance", number(account.balance)], ["Reserved", number(account.reserved)],
  ];
  if (account.quota) {
    const used = `${number(account.quota_use.used)} of ${number(account.quota.limit)}`;
    facts.push([`Quota per ${account.quota.period}`, used]);
  }
  return [
    element("h1", {}, tenant), figures(facts),
    moveForm("Top up", "/v1/credits/topup", tenant), moveForm("Consume", "/v1/credits/consume", tenant),
    element("h2", {}, "Reservations"), holds, element("h2", {}, "Transactions"), history,
  ];
}

async function showExperiments() {
  return [element("h1", {}, "Experiments"), await pages("/v1/experiments", [
    ["Experiment", (row) => link(row.name, "experiments", row.name)],
    ["Status", (row) => row.status],
    ["Decision", (row) => `${row.decision.decision}${row.decision.variant ? `: ${row.decision.variant}` : ""}`],
    ["Allocation", (row) => (row.canary ? "canary" : row.allocation)],
    ["Variants", (row) => row.variants.map((variant) => variant.name).join(", ")],
  ], "There is no experiment yet.")];
}

function interval([low, high], middle, limit) {
  const place = (value) => `${(100 * value) / limit}%`;
  const drawing = document.createElementNS(SVG, "svg");
  const add = (name, attributes) => {
    const shape = document.createElementNS(SVG, name);
    for (const [attribute, value] of Object.entries(attributes)) shape.setAttribute(attribute, value);
    drawing.append(shape);
  };
  add("rect", { x: place(low), width: place(high - low), y: "25%", height: "50%" });
  add("line", { x1: place(middle), x2: place(middle), y1: "10%", y2: "90%" });
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", `from ${percent(low)} to ${percent(high)}`);
  return drawing;
}

async function showExperiment(name) {
  const result = await call("GET", `/v1/experiments/${encodeURIComponent(name)}/analysis`);
  const limit = Math.max(...result.variants.map((row) => row.credible_interval[1]), 1e-9);
  const decided = result.variant ? `${result.decision}: ${result.variant}` : result.decision;
  return [
    element("h1", {}, name),
    figures([["Decision", decided], ["Samples", number(result.samples)],
      ["Sample ratio mismatch p", result.srm_p_value === null ? "" : result.srm_p_value.toPrecision(3)]]),
    table([
      ["Variant", (row) => `${row.name}${row.control ? " (control)" : ""}`],
      ["Samples", (row) => number(row.samples), "number"],
      ["Rate", (row) => percent(row.rate), "number"],
      ["Credible interval", (row) => interval(row.credible_interval, row.rate ?? 0, limit)],
      ["P(best)", (row) => percent(row.probability_best), "number"],
      ["Lift", (row) => percent(row.lift), "number"],
      ["e-value", (row) => (row.e_value === null ? "" : row.e_value.toPrecision(3)), "number"],
      ["Still unmet", (row) => row.unmet.join("; ")],
    ], result.variants, "There is no variant."),
    element("p", { class: "soft" }, `A winner needs an e-value of ${result.threshold} once, which holds false positives `
      + `below ${percent(result.max_false_positive)} at however many looks.`),
  ];
}

async function showServices() {
  return [element("h1", {}, "Services"), await pages("/v1/services", [
    ["Service", (row) => link(row.service, "services", row.service)],
    ["Instances", (row) => number(row.instances), "number"],
    ["Up", (row) => element("span", { class: tone(row.up === row.instances) }, number(row.up)), "number"],
    ["Tags", (row) => row.tags.join(", ")],
  ], "No service is registered.")];
}

async function showService(service) {
  const address = `/v1/services/${encodeURIComponent(service)}`;
  const drain = (row) => element("button", { type: "button", onclick: async () => {
    await call("POST", `${address}/instances/${encodeURIComponent(row.id)}/drain`);
    render();
  } }, "Drain");
  return [element("h1", {}, service), await pages(address, [
    ["Instance", (row) => row.id],
    ["Address", (row) => `${row.host}:${row.port}`],
    ["State", (row) => element("span", { class: tone(row.state === "up") }, row.state)],
    ["Breaker", (row) => element("span", { class: tone(row.breaker === "closed") }, row.breaker)],
    ["Zone", (row) => row.zone || ""],
    ["In flight", (row) => number(row.load.in_flight), "number"],
    ["Latency ms", (row) => number(row.load.latency_ms), "number"],
    ["", (row) => (row.state === "draining" ? "" : drain(row))],
  ], "No instance is registered.")];
}

async function showAudit(transaction) {
  const shards = await pages("/v1/audit/shards", [
    ["Shard", (row) => number(row.shard), "number"],
    ["Entries", (row) => number(row.size), "number"],
    ["Signed", (row) => number(row.signed_size), "number"],
    ["Head", (row) => element("code", {}, row.head)],
  ], "There is no shard.");
  const found = element("div", { role: "status" });
  const verify = element("button", { type: "button", onclick: async () => {
    verify.disabled = true;
    found.replaceChildren(await call("POST", "/v1/audit/verify", {}).then(verdict, notice));
    verify.disabled = false;
  } }, "Verify the chain");
  const parts = [element("h1", {}, "Audit chain"), shards, element("p", {}, verify), found];
  const ask = actionForm("Show receipt", [["id", "Transaction id", "text"]], async ({ id }) => {
    location.hash = `#/${path("audit", id)}`;
    return "";
  });
  parts.push(element("h2", {}, "Receipt of a transaction"), ask);
  if (transaction) {
    const text = await receipt(transaction);
    const how = element("code", {}, "shieldx audit verify --receipt FILE");
    parts.push(element("p", {}, "Anyone can check this text offline: ", how), element("pre", {}, text));
  }
  return parts;
}

async function receipt(transaction) {
  for (let tries = 1; ; tries++) {
    try {
      return await call("GET", `/v1/audit/receipts/${encodeURIComponent(transaction)}`);
    } catch (error) {
      if (error.code !== "not_published" || tries === RECEIPT_TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, RECEIPT_PAUSE_MS));
    }
  }
}

function verdict(result) {
  const bad = result.shards.filter((shard) => shard.first_bad !== null);
  const entries = result.shards.reduce((sum, shard) => sum + shard.entries, 0);
  if (result.ok) return element("p", { class: "notice good" }, `Intact: ${number(entries)} entries verified.`);
  const texts = bad.map((shard) => `Shard ${shard.shard}, seq ${shard.first_bad}: ${shard.reason}.`);
  return element("p", { class: "notice bad" }, texts.join(" "));
}

function notice(error) {
  const text = error.status === 401 ? "Enter a valid API key above." : error.message;
  return element("p", { class: "notice bad", role: "alert" }, text);
}

const VIEWS = {
  status: showStatus,
  accounts: (id) => (id ? showAccount(id) : showAccounts()),
  experiments: (name) => (name ? showExperiment(name) : showExperiments()),
  services: (name) => (name ? showService(name) : showServices()),
  audit: showAudit,
};

let shown = 0;

async function render() {
  const turn = ++shown;
  const [name, argument] = location.hash.slice(2).split("/").map(decodeURIComponent);
  const current = name in VIEWS ? name : "status";
  for (const item of document.querySelectorAll("header nav a")) {
    if (item.getAttribute("href") === `#/${current}`) item.setAttribute("aria-current", "page");
    else item.removeAttribute("aria-current");
  }
  let parts;
  try {
    parts = await VIEWS[current](argument);
  } catch (error) {
    parts = [notice(error)];
  }
  if (turn === shown) view.replaceChildren(...parts); // A later view has been asked for meanwhile.
}

async function refreshReadiness() {
  try {
    const ready = await call("GET", "/ready");
    readiness.textContent = ready.status;
    readiness.className = tone(ready.status === "ready");
  } catch {
    readiness.textContent = "out of reach";
    readiness.className = "bad";
  }
}

document.getElementById("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const input = document.getElementById("key");
  if (input.value) sessionStorage.setItem(KEY_NAME, input.value.trim());
  else sessionStorage.removeItem(KEY_NAME);
  input.value = "";
  showKeyState();
  render();
});

function showKeyState() {
  const has = sessionStorage.getItem(KEY_NAME) !== null;
  document.getElementById("key").placeholder = has ? "a key is in use" : "shx_live_ or the root key";
  document.getElementById("key-button").textContent = has ? "Change" : "Use";
}

window.addEventListener("hashchange", () => { render(); view.focus(); });
setInterval(() => { if (!document.hidden) refreshReadiness(); }, REFRESH_MS);
showKeyState();
refreshReadiness();
render();
