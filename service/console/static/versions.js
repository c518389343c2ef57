// The history of the weights: what each version changed, how two differ, and the way back.

import { call, events, heardOf, newestVersion } from "./api.js";
import { plot } from "./charts.js";
import { h, replace } from "./dom.js";
import { bytes, count, moment, seconds, share, total } from "./format.js";
import { announce, confirmed, failure } from "./notices.js";
import * as session from "./session.js";

const PAGE = 1000;
const SHOWN = 50;
const NAMED = 5;

export function versionsView(signal) {
  const figures = h("div", { class: "plots" });
  const compared = h("div", { class: "compared" });
  const rows = h("tbody", { role: "rowgroup" });
  const foot = h("div", { class: "foot" });
  const trouble = h("div");
  const refused = h("div"); // of what was clicked: reading goes on meanwhile
  const first = numberField("first", "From");
  const second = numberField("second", "To");
  let history = null;
  let limit = SHOWN;

  const compare = async (before, after) => {
    first.querySelector("input").value = before;
    second.querySelector("input").value = after;
    try {
      replace(compared, difference(await call("GET", `versions/${before}/diff/${after}`), history));
    } catch (error) {
      replace(compared, failure(error, () => compare(before, after)));
    }
  };
  const context = { compare, trouble: refused, reload: () => reload() };
  const shown = () => {
    const older = history.cursor !== null || history.versions.length > limit;
    replace(rows, history.versions.slice(0, limit).map((version) => rowOf(version, history, context)));
    replace(
      foot,
      h("span", {}, count(history.versions.length, "version"), history.cursor === null ? "" : ", the newest"),
      older && h("button", { type: "button", onclick: further }, "Older ones"),
    );
  };
  const drawn = async (reading, again) => {
    try {
      history = await reading;
      replace(trouble);
      shown();
      replace(figures, await plots(history));
    } catch (error) {
      replace(trouble, failure(error, again));
    }
  };
  const reload = () => drawn(read().then((newest) => joined(newest, history)), reload);
  const further = () => {
    limit += SHOWN;
    return filled();
  };
  const filled = () => (history.cursor !== null && history.versions.length < limit ? drawn(longer(), filled) : shown());
  const longer = async () => {
    const page = await read(history.cursor, history.factsCursor);
    return extended(history, page);
  };
  for (const name of ["back", "version"]) events.addEventListener(name, reload, { signal });
  reload();
  const onsubmit = (event) => {
    event.preventDefault();
    const values = new FormData(event.currentTarget);
    compare(values.get("first"), values.get("second"));
  };
  return h(
    "div",
    { class: "view" },
    h("h1", { class: "hidden" }, "Versions"),
    h("section", { class: "panel", "aria-labelledby": "plots-title" }, h("h2", { id: "plots-title" }, "Over versions"), figures),
    h(
      "section",
      { class: "panel", "aria-labelledby": "diff-title" },
      h("h2", { id: "diff-title" }, "What differs"),
      h("form", { class: "row", onsubmit }, first, second, h("button", { type: "submit" }, "Compare")),
      compared,
    ),
    h(
      "section",
      { class: "panel", "aria-labelledby": "timeline-title" },
      h("h2", { id: "timeline-title" }, "Timeline"),
      trouble,
      refused,
      h(
        "table",
        { class: "timeline", role: "table", "aria-labelledby": "timeline-title" },
        h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ["Version", "What", "Facts", "When", ""].map(heading))),
        rows,
      ),
      foot,
    ),
  );
}

function heading(name) {
  return h("th", { role: "columnheader", scope: "col" }, name || h("span", { class: "hidden" }, "Actions"));
}

function numberField(name, label) {
  return h("label", { class: "field short" }, h("span", {}, label), h("input", { name, type: "number", min: "0", step: "1", required: true, inputmode: "numeric" }));
}

/** A page of versions and facts, newest first, from two cursors on; a `cursor` of `null`: there are no more. */
async function read(cursor, factsCursor) {
  const query = { limit: PAGE, newest_first: true };
  const [versions, facts] = await Promise.all([
    call("GET", "versions", { query: { ...query, cursor } }),
    factsCursor === null ? null : call("GET", "facts", { query: { ...query, cursor: factsCursor } }),
  ]);
  heardOf(versions.weights_version);
  const byId = new Map((facts?.items ?? []).map((fact) => [fact.id, fact]));
  return { versions: versions.items, byId, cursor: versions.next_cursor, factsCursor: facts?.next_cursor ?? null, newest: versions.weights_version };
}

/** The history with the page after it; as it was where it has that page already. */
function extended(history, page) {
  if (page.versions[0]?.version !== history.versions.at(-1).version - 1) return history;
  return { ...page, versions: [...history.versions, ...page.versions], byId: new Map([...history.byId, ...page.byId]), newest: history.newest };
}

/** The newest page before what somebody has paged to, which never changes; without it in another history. */
function joined(page, before) {
  const last = page.versions.at(-1);
  const at = before?.versions.findIndex(({ version, chain }) => version === last.version && chain === last.chain) ?? -1;
  if (at < 0) return page;
  return { ...before, versions: [...page.versions, ...before.versions.slice(at + 1)], byId: new Map([...before.byId, ...page.byId]), newest: page.newest };
}

async function plots(history) {
  const written = history.versions.map(({ version, births, kind }) => [version, kind === "fact" ? births.map((id) => history.byId.get(id)) : []]);
  const measured = written.filter(([, facts]) => facts.length && facts.every(Boolean)).reverse();
  const over = (reduce) => measured.map(([version, facts]) => [version, reduce(facts.map((fact) => fact.report))]);
  const mean = (values) => values.reduce((sum, each) => sum + each, 0) / values.length;
  return [
    plot("Recall", over((reports) => mean(reports.map((each) => each.recall_after))), { show: share, ceiling: 1 }),
    plot("Drift", over((reports) => Math.max(...reports.map((each) => each.drift))), { show: drift, least: 0.01 }),
    await growth(history),
    plot("Write latency", over((reports) => reports.reduce((sum, each) => sum + total(each.timings), 0)), { show: seconds }),
  ];
}

function drift(value) {
  return `${+(100 * value).toFixed(2)}%`;
}

/** How the bank grew: in columns, or in facts where not all of them are at hand. */
async function growth(history) {
  const ascending = [...history.versions].reverse();
  const ids = ascending.flatMap(({ births, deaths }) => [...births, ...deaths]);
  const whole = history.cursor === null;
  const measured = whole && ids.every((id) => history.byId.has(id));
  const weight = measured ? (id) => history.byId.get(id).report.columns ?? 0 : () => 1;
  let size = whole ? 0 : (await call("GET", `versions/${ascending[0].version - 1}`)).facts;
  const points = ascending.map(({ version, births, deaths }) => {
    for (const id of births) size += weight(id);
    for (const id of deaths) size -= weight(id);
    return [version, size];
  });
  const show = (value) => value.toLocaleString("en");
  return plot(measured ? "Bank size, columns" : "Bank size, facts", points, { kind: "steps", show });
}

function rowOf(version, history, { compare, trouble, reload }) {
  const number = version.version;
  const newest = number === history.newest;
  const actions = [];
  if (number > 0) actions.push(h("button", { type: "button", class: "quiet", onclick: () => compare(number - 1, number) }, "Diff"));
  if (!newest && session.allows("versions:write")) actions.push(h("button", { type: "button", class: "quiet", onclick: () => activated(number, trouble, reload) }, "Make current"));
  return h(
    "tr",
    { role: "row", "data-version": number, class: newest ? "current" : null },
    h("td", { role: "cell", class: "number", "data-label": "Version" }, h("b", {}, `v${number}`), newest && h("span", { class: "tag" }, "current")),
    h("td", { role: "cell", "data-label": "What" }, kindOf(version)),
    h("td", { role: "cell", class: "main" }, changed("+", version.births, history), changed("−", version.deaths, history)),
    h("td", { role: "cell", "data-label": "When" }, h("time", { datetime: version.created_at }, moment(version.created_at))),
    h("td", { role: "cell", class: "action" }, actions),
  );
}

function kindOf({ kind, target }) {
  return kind === "rollback" ? `rollback to v${target}` : kind;
}

/** Facts that came or went, by what they say. */
function changed(sign, ids, { byId }) {
  if (ids.length === 0) return null;
  const lines = ids.slice(0, NAMED).map((id) => h("li", {}, h("span", { class: "sign" }, `${sign} `), byId.get(id)?.fact ?? id));
  if (ids.length > NAMED) lines.push(h("li", { class: "note" }, `${sign} ${count(ids.length - NAMED, "more", "more")}`));
  return h("ul", { class: "changed" }, lines);
}

function difference(diff, history) {
  const side = (title, sign, { facts, columns, bytes: size }) =>
    h("div", {}, h("h3", {}, title), facts.length ? [h("p", { class: "note" }, `${count(facts.length, "fact")}, ${count(columns, "column")}, ${bytes(size)}`), changed(sign, facts, history)] : h("p", { class: "note" }, "nothing"));
  const folds = [...diff.folded.map((id) => `${id} folded`), ...diff.unfolded.map((id) => `${id} unfolded`)];
  return h(
    "div",
    { class: "sides", role: "status" },
    side(`Only v${diff.after} knows`, "+", diff.born),
    side(`Only v${diff.before} knows`, "−", diff.died),
    folds.length > 0 && h("p", { class: "note" }, folds.join(", ")),
  );
}

async function activated(number, trouble, reload) {
  const seen = newestVersion();
  const text = `A new version will know exactly what version ${number} knew. Nothing is lost: version ${seen} can be made current again.`;
  if (!(await confirmed(`Make version ${number} current?`, text, "Make current"))) return;
  replace(trouble);
  try {
    const made = await call("POST", `versions/${number}/activate`, { headers: { "If-Match": `"${seen}"` } });
    announce(`Version ${made.version} knows what version ${number} knew`);
    heardOf(made.weights_version);
    reload();
  } catch (error) {
    await reload();
    replace(trouble, failure(error, () => activated(number, trouble, reload)));
  }
}
