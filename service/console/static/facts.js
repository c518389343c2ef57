// What the weights know, who taught it and how well it is recalled.

import { call, events, heardOf } from "./api.js";
import { h, replace } from "./dom.js";
import { bytes, count, moment, seconds, share, total } from "./format.js";
import { announce, confirmed, failure, measured } from "./notices.js";
import * as session from "./session.js";
import { teaching } from "./teach.js";

const PAGE = 100;
const LARGEST = 1000; // that the server gives
const STATES = [
  ["published", "Known"],
  ["retracted", "Retracted"],
  ["", "All"],
];

export function factsView(signal) {
  const list = session.allows("facts:read") ? listing(signal) : null;
  const parts = [];
  if (session.allows("facts:write")) parts.push(teaching(() => list?.reload()));
  parts.push(list ? list.element : h("p", { class: "empty" }, "Your API key does not show facts: it lacks the scope facts:read."));
  return h("div", { class: "view" }, h("h1", { class: "hidden" }, "Facts"), parts);
}

function listing(signal) {
  const rows = h("tbody", { role: "rowgroup" });
  const foot = h("div", { class: "foot" });
  const trouble = h("div");
  const refused = h("div"); // of what was clicked: reading goes on meanwhile
  const state = h(
    "select",
    { "aria-label": "Which facts", onchange: () => more(null) },
    STATES.map(([value, name]) => h("option", { value }, name)),
  );
  const filter = h("input", { type: "search", "aria-label": "Filter", placeholder: "Filter", oninput: () => shown() });
  let facts = [];
  let turn = 0;

  const context = { trouble: refused, open: new Set(), reload: () => reload() };
  const shown = () => {
    const wanted = filter.value.trim().toLowerCase();
    const found = facts.filter((fact) => `${fact.fact} ${fact.request.metadata?.source ?? ""} ${fact.actor}`.toLowerCase().includes(wanted));
    replace(rows, found.map((fact) => rowOf(fact, context)));
    if (found.length === 0) replace(rows, h("tr", { role: "row" }, h("td", { role: "cell", colspan: "6", class: "empty" }, facts.length ? "Nothing fits the filter." : "No facts yet.")));
  };
  /** Another page, or from the newest on so many facts. */
  const more = async (cursor, wanted = PAGE) => {
    const mine = (turn += 1);
    try {
      const page = await read(state.value || null, cursor, wanted);
      if (mine !== turn) return;
      heardOf(page.weights_version);
      facts = cursor ? [...facts, ...page.items] : page.items;
      replace(trouble);
      shown();
      replace(
        foot,
        h("span", {}, count(facts.length, "fact"), page.next_cursor ? " so far" : ""),
        page.next_cursor && h("button", { type: "button", onclick: () => more(page.next_cursor) }, "Older ones"),
      );
    } catch (error) {
      replace(trouble, failure(error, () => more(cursor, wanted)));
    }
  };
  const reload = () => more(null, Math.max(facts.length, PAGE)); // what somebody has paged to stays
  for (const name of ["back", "version"]) events.addEventListener(name, reload, { signal });
  reload();
  const element = h(
    "section",
    { class: "panel", "aria-labelledby": "facts-title" },
    h("div", { class: "row head" }, h("h2", { id: "facts-title" }, "Facts"), filter, state),
    trouble,
    refused,
    h(
      "table",
      { class: "facts", role: "table", "aria-labelledby": "facts-title" },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ["Fact", "Recall", "Source", "Who", "When", ""].map(heading))),
      rows,
    ),
    foot,
  );
  return { element, reload };
}

/** So many facts, in as many pages as that takes, as one page. */
async function read(state, cursor, wanted) {
  const items = [];
  for (;;) {
    const limit = Math.min(wanted - items.length, LARGEST);
    const page = await call("GET", "facts", { query: { limit, newest_first: true, state, cursor } });
    items.push(...page.items);
    cursor = page.next_cursor;
    if (cursor === null || items.length >= wanted) return { ...page, items };
  }
}

function heading(name) {
  const shown = name || h("span", { class: "hidden" }, "Actions");
  return h("th", { role: "columnheader", scope: "col", class: name === "Recall" ? "number" : null }, shown);
}

function rowOf(fact, context) {
  const known = fact.state === "published";
  const detail = h("tr", { role: "row", class: "detail" });
  const drawn = () => {
    detail.hidden = !context.open.has(fact.id);
    open.setAttribute("aria-expanded", String(!detail.hidden));
    if (!detail.hidden) replace(detail, h("td", { role: "cell", colspan: "6" }, detailsOf(fact)));
  };
  const onclick = () => {
    if (!context.open.delete(fact.id)) context.open.add(fact.id);
    drawn();
  };
  const open = h("button", { type: "button", class: "text", onclick }, fact.fact);
  drawn();
  const retract = known && session.allows("facts:write") && h("button", { type: "button", class: "quiet", onclick: () => retracted(fact, context) }, "Retract");
  const row = h(
    "tr",
    { role: "row", class: known ? null : "gone", "data-fact": fact.id },
    h("td", { role: "cell", class: "main" }, open, fact.folded && tag("folded"), !known && tag(`gone since v${fact.died}`)),
    cell("Recall", share(fact.report.recall_after), "number"),
    cell("Source", sourceOf(fact)),
    cell("Who", whoIs(fact.actor)),
    h("td", { role: "cell", "data-label": "When" }, h("time", { datetime: fact.created_at }, moment(fact.created_at)), h("span", { class: "note" }, ` v${fact.born}`)),
    h("td", { role: "cell", class: "action" }, retract),
  );
  return [row, detail];
}

function cell(label, text, kind) {
  return h("td", { role: "cell", "data-label": label, class: kind }, text);
}

function tag(text) {
  return h("span", { class: "tag" }, text);
}

/** Of other keys only the id is known. */
function whoIs(actor) {
  const me = session.who();
  return me.name !== null && actor === me.id ? `${me.name} (you)` : actor;
}

function sourceOf(fact) {
  const { source } = fact.request.metadata ?? {};
  if (source === undefined) return "–";
  return typeof source === "string" ? source : JSON.stringify(source);
}

function detailsOf(fact) {
  const { report } = fact;
  const layers = report.layers?.length ? `in layer ${report.layers.join(", ")}` : "";
  const size = `${count(report.columns ?? 0, "column")} ${layers}, ${bytes(report.bytes ?? 0)}, written in ${seconds(total(report.timings))} as ${report.strategy}.`;
  return [
    measured(report),
    h("p", { class: "note" }, report.answer && ["Its answer: ", h("b", {}, report.answer), ". "], size),
    h("p", { class: "note" }, h("code", {}, fact.id), fact.expires_at && `, expires ${moment(fact.expires_at)}`),
  ];
}

async function retracted(fact, { trouble, reload }) {
  const text = `“${fact.fact}” will not be known from the next version on. Versions before it still know it.`;
  if (!(await confirmed("Retract this fact?", text, "Retract"))) return;
  replace(trouble);
  try {
    const { weights_version } = await call("DELETE", `facts/${fact.id}`);
    announce(`Retracted in version ${weights_version}`);
    heardOf(weights_version);
    reload();
  } catch (error) {
    replace(trouble, failure(error, () => retracted(fact, { trouble, reload })));
  }
}
