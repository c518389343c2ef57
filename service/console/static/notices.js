// What happened, said where it happened, with a way on.

import { NotSignedIn, Refused, Unreachable } from "./api.js";
import { h, replace } from "./dom.js";
import { share } from "./format.js";

/** A short sentence at the foot of the page, for what went well. */
export function announce(text) {
  const place = document.getElementById("announcements");
  replace(place, h("p", {}, text));
  setTimeout(() => place.textContent === text && replace(place), 6000);
}

/** A box with a sentence, more below it, and buttons. */
export function notice(kind, title, { text, more, actions = [] } = {}) {
  return h(
    "div",
    { class: `notice ${kind}`, role: kind === "refused" ? "alert" : "status" },
    h("p", { class: "title" }, title),
    text && h("p", {}, text),
    more,
    actions.length > 0 && h("p", { class: "actions" }, actions),
  );
}

/** What an error says to whoever clicked, and `again` as the way on. */
export function failure(error, again, label = "Try again") {
  const actions = again ? [h("button", { type: "button", onclick: again }, label)] : [];
  if (error instanceof Unreachable) {
    return notice("lost", "No answer from the server", { text: "What you typed is kept.", actions });
  }
  if (error instanceof NotSignedIn) {
    return notice("lost", "Not signed in", { text: "What you typed is kept.", actions });
  }
  if (!(error instanceof Refused)) throw error;
  return notice("refused", error.problem.title ?? "Refused", {
    text: explained(error),
    more: fields(error.problem),
    actions,
  });
}

function explained(error) {
  const { problem, status, retryAfter } = error;
  if (status === 429 && retryAfter) return `${problem.detail}. Try again in ${retryAfter} s.`;
  if (status === 412) return "Somebody changed the weights meanwhile. Look at the newest version first.";
  return problem.errors ? null : problem.detail;
}

function fields(problem) {
  if (!problem.errors) return null;
  const lines = problem.errors.map((each) => h("li", {}, h("b", {}, each.field), ` ${each.reason}`));
  return h("ul", {}, lines);
}

/** What was measured of a fact, as a short table of numbers. */
export function measured(report) {
  const probes = report.probes ?? {};
  const rows = [
    ["Recall on other wordings", share(report.recall_after)],
    ["Recall before", share(report.recall_before)],
    ["Answered with the fact in view", share(report.teacher_recall)],
    ["Other answers unchanged", share(report.locality)],
    ["Drift", share(report.drift)],
    ["Questions written / answered", probes.written === undefined ? "–" : `${probes.written} / ${probes.answered}`],
    ["Attempts", String(report.attempts ?? "–")],
  ];
  return h(
    "dl",
    { class: "figures" },
    rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

/** Ask before something that others notice; resolves to whether it is wanted. */
export function confirmed(title, text, action) {
  return new Promise((decide) => {
    const box = h(
      "dialog",
      { "aria-labelledby": "confirm-title", onclose: () => (box.remove(), decide(box.returnValue === "yes")) },
      h("h2", { id: "confirm-title" }, title),
      h("p", {}, text),
      h(
        "p",
        { class: "actions" },
        h("button", { class: "primary", type: "button", onclick: () => box.close("yes") }, action),
        h("button", { type: "button", onclick: () => box.close("no") }, "Cancel"),
      ),
    );
    document.body.append(box);
    box.showModal();
  });
}
