// How the operator's page shows what the service returns. All text is set as text, so none of it is ever markup.

export const $ = (id) => document.getElementById(id);

export function make(tag, text = "", attributes = {}) {
  const element = Object.assign(document.createElement(tag), { textContent: text });
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export function cell(label, text, className = "") {
  return make("td", text, { "data-label": label, class: className });
}

export const when = (text) => new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });

export function age(text) {
  const seconds = Math.max(0, (Date.now() - new Date(text)) / 1000);
  for (const [size, name] of [[86400, "d"], [3600, "h"], [60, "min"]])
    if (seconds >= size) return `${Math.floor(seconds / size)} ${name} ago`;
  return "just now";
}

const percent = (rate) => `${(100 * rate.rate).toFixed(1)} %`;
const range = (rate) => rate.interval_95.map((bound) => (100 * bound).toFixed(1)).join(" to ");

export function button(text, label, action) {
  const made = make("button", text, { type: "button", class: "plain", "aria-label": label });
  made.addEventListener("click", action);
  return made;
}

export function replaceRows(id, rows) {
  const focused = document.activeElement?.getAttribute("aria-label");
  $(id).replaceChildren(...rows);
  if (focused) $(id).querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}

export function figureRows(plan) {
  return Object.entries(plan.categories).map(([name, category]) => {
    const row = make("tr");
    const masks = Object.values(category.masks);
    const kind = cell("Action", "");
    kind.append(make("span", category.action, { class: `badge ${category.action === "enforce" ? "good" : "warn"}` }));
    const bits = category.action === "enforce" ? category.bits.toLocaleString() : "0";
    row.append(cell("Category", name), kind, cell("Bits off", bits, "number"));
    for (const [label, key] of [["Still found", "found"], ["Rest right", "everything else right"]]) {
      const place = cell(label, "");
      const inner = make("div");
      for (const mask of masks) {
        const rates = mask.figures[key];
        inner.append(make("div", rates ? `${percent(rates.base)} → ${percent(rates.masked)}` : "not measured"));
        if (rates) inner.append(make("small", `${range(rates.masked)}, n = ${rates.masked.n.toLocaleString()}`));
      }
      place.append(inner);
      row.append(place);
    }
    return row;
  });
}

export function showAudit(log) {
  const isWhole = log.faults.length === 0;
  $("chain").textContent = isWhole ? `${log.lines} ${log.lines === 1 ? "line" : "lines"}, unbroken` : "broken";
  $("chain").className = `badge ${isWhole ? "good" : "bad"}`;
  $("head").textContent = isWhole ? `head ${log.head}` : log.faults.join("\n");
  const rows = log.last.map((line) => {
    const row = make("tr");
    const place = cell("", "", "action");
    place.append(button("Save", `Save line ${line.seq}`, () => save(line, `line-${line.seq}.json`)));
    row.append(
      cell("Line", String(line.seq), "number"), cell("Time", line.receipt.time ? when(line.receipt.time) : ""),
      cell("Action", line.action), cell("What", told(line.receipt)), place,
    );
    return row;
  });
  replaceRows("lines", rows);
}

function told(receipt) {
  if (receipt.state) return `${receipt.state}; policies ${Object.keys(receipt.pool?.policies ?? { [receipt.policy.name]: 1 }).join(", ")}`;
  const names = Object.entries(receipt.to || {}).filter(([name, digest]) => receipt.from?.[name] !== digest).map(([name]) => name);
  const gone = Object.keys(receipt.from || {}).filter((name) => !(name in (receipt.to || {})));
  const what = [...names, ...gone.map((name) => `without ${name}`)].join(", ");
  return `${receipt.change} by ${receipt.by}: ${what || "no change"}${receipt.reason ? `. ${receipt.reason}` : ""}`;
}

export function save(value, name) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(value, null, 2)], { type: "application/json" }));
  const link = make("a", "", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

export function showOutcome(planned) {
  const box = $("outcome");
  box.replaceChildren(make("h3", "What it comes to"));
  const verdict = planned.changes?.verdict ?? "new";
  const tone = { tightened: "good", same: "", new: "" }[verdict] ?? "warn";
  const line = make("p", `${planned.name} `);
  line.append(make("span", verdict, { class: `badge ${tone}` }));
  box.append(line);
  const list = make("ul");
  for (const change of planned.changes?.changes ?? [])
    list.append(make("li", `${change.effect}: ${change.key}: ${change.old ?? "nothing"} → ${change.new ?? "nothing"}`));
  box.append(list);
  const off = Object.entries(planned.plan.shares).filter(([, count]) => count.masked);
  const shares = off.map(([kind, count]) => `${((100 * count.masked) / count.total).toFixed(2)} % of ${kind}`);
  box.append(make("p", `Off in all: ${shares.join(", ")}; budget ${(100 * planned.plan.budget).toFixed(2)} % of each kind.`));
}

export function showPictures(pictures) {
  $("pictures").replaceChildren(...pictures.map((pair) => {
    const figure = make("figure");
    const both = make("div");
    for (const side of ["before", "after"]) {
      const part = make("span", side);
      part.append(make("img", "", { src: pair[side], alt: `${side}: ${pair.prompt}` }));
      both.append(part);
    }
    figure.append(both, make("figcaption", `${pair.prompt} (seed ${pair.seed})`));
    return figure;
  }));
}
