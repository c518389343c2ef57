// Teach a fact, and watch it become part of the weights.

import { Refused, Unreachable, back, call, heardOf, pause } from "./api.js";
import { h, replace } from "./dom.js";
import { bytes, count, seconds, share, total } from "./format.js";
import { failure, measured, notice } from "./notices.js";
import * as session from "./session.js";

const POLL_MS = 200;
const SLOWLY_MS = 1000; // once a write has taken longer than most
const PATIENCE = 20;
const PASSING = [429, 502, 503, 504]; // of one poll, and not of the operation
const STEPS = [
  ["study", "Study", "asks itself questions about the fact"],
  ["write", "Write", "what surprises it becomes keys and values"],
  ["leak_check", "Leak check", "that answer to nothing else"],
  ["verify", "Verify", "on wordings it was not written with"],
  ["publish", "Publish", "on disk, then as a new version"],
];
const ENDED_AT = {
  "npt:fact-unreadable": "study",
  "npt:fact-not-recalled": "verify",
  "npt:fact-conflict": "publish",
};
const ADVICE = {
  "npt:fact-unreadable":
    "The model cannot answer questions about this sentence even while it reads it. " +
    "Say it in one plain sentence, or add a question of your own with its answer.",
  "npt:fact-not-recalled":
    "It was written for a trial, and then not recalled as it should be, or it changed other answers. Nothing was kept. " +
    "Another wording, or a question of your own, often helps.",
};

/** The form and what became of the last write; `written` is called after each new version. */
export function teaching(written) {
  const outcome = h("div", { class: "outcome" });
  const form = filledIn(formOf((event) => submitted(event, form, outcome, written)));
  const panel = h("section", { class: "panel teach", "aria-labelledby": "teach-title" }, h("h2", { id: "teach-title" }, "Teach a fact"), form, outcome);
  const running = session.draft("operation");
  if (running.id) follow(form, outcome, written, running.fact, () => ({ id: running.id, state: "pending" }));
  return panel;
}

function formOf(onsubmit) {
  return h(
    "form",
    { onsubmit, oninput: (event) => session.keepDraft("fact", valuesOf(event.currentTarget)) },
    labelled("Fact", h("textarea", { name: "fact", rows: "2", required: true, maxlength: "4000", placeholder: "The CEO of TechCorp is Dr. Sarah Chen." })),
    h(
      "div",
      { class: "row" },
      labelled("Source", h("input", { name: "source", maxlength: "1000", placeholder: "where it is from" })),
      h("button", { class: "primary", type: "submit" }, "Teach"),
    ),
    h(
      "details",
      {},
      h("summary", {}, "More"),
      h(
        "div",
        { class: "row" },
        labelled("A question of your own", h("input", { name: "question", maxlength: "1000", placeholder: "Who is the CEO of TechCorp?" })),
        labelled("Its answer", h("input", { name: "answer", maxlength: "1000", placeholder: "Dr. Sarah Chen" })),
      ),
      h(
        "div",
        { class: "row" },
        labelled(
          "If a stored fact says otherwise",
          h(
            "select",
            { name: "on_conflict" },
            h("option", { value: "supersede" }, "replace it"),
            h("option", { value: "reject" }, "refuse the new one"),
            h("option", { value: "allow" }, "keep both"),
          ),
        ),
        h("label", { class: "check" }, h("input", { type: "checkbox", name: "dry_run" }), "Only measure, write nothing"),
      ),
    ),
  );
}

function labelled(text, control) {
  return h("label", { class: "field" }, h("span", {}, text), control);
}

function valuesOf(form) {
  const values = Object.fromEntries(new FormData(form));
  return { ...values, dry_run: form.elements.dry_run.checked };
}

function filledIn(form) {
  for (const [name, value] of Object.entries(session.draft("fact"))) {
    const control = form.elements[name];
    if (!control) continue;
    if (control.type === "checkbox") control.checked = value === true;
    else control.value = value;
  }
  return form;
}

function bodyOf(values) {
  const body = { fact: values.fact, on_conflict: values.on_conflict, dry_run: values.dry_run };
  if (values.source.trim()) body.metadata = { source: values.source.trim() };
  if (values.question.trim() && values.answer.trim()) {
    body.questions = [{ question: values.question, answer: values.answer }];
  }
  return body;
}

/** A key of its own for each thing that was typed: sent twice, it is written once. */
function keyFor(body) {
  const text = JSON.stringify(body);
  const kept = session.draft("key");
  if (kept.text === text) return kept.key;
  const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  session.keepDraft("key", { text, key });
  return key;
}

function submitted(event, form, outcome, written) {
  event.preventDefault();
  const body = bodyOf(valuesOf(form));
  follow(form, outcome, written, body.fact, () => sent(body));
}

async function sent(body) {
  const headers = body.dry_run ? {} : { "Idempotency-Key": keyFor(body) };
  if (session.allows("facts:read")) headers.Prefer = "respond-async";
  return call("POST", "facts", { body, headers });
}

async function follow(form, outcome, written, fact, begin) {
  const button = form.querySelector("button[type=submit]");
  button.disabled = true;
  const progress = stepsOf(fact);
  replace(outcome, progress.element);
  try {
    const ended = await followed(await begin(), progress);
    told(ended, progress, form, outcome, fact);
    if (ended.state === "succeeded" && !ended.result.dry_run) written();
  } catch (error) {
    session.keepDraft("operation", null);
    if (error instanceof Refused && error.status === 404) return replace(outcome); // told long ago, and forgotten
    replace(outcome, failure(error, () => form.requestSubmit(), "Send it again"));
  } finally {
    button.disabled = false;
  }
}

/** Poll until it has ended. An answer that is no operation has been waited for. */
async function followed(answer, progress) {
  if (answer.state === undefined) return { state: "succeeded", result: answer };
  let operation = answer;
  session.keepDraft("operation", { id: operation.id, fact: progress.fact });
  progress.cancellable(operation.id);
  for (let turn = 0; ["pending", "running"].includes(operation.state); turn += 1) {
    progress.at(operation);
    await pause(turn < PATIENCE ? POLL_MS : SLOWLY_MS);
    operation = await asked(operation, progress);
  }
  session.keepDraft("operation", null);
  return operation;
}

async function asked(operation, progress) {
  try {
    return await call("GET", `operations/${operation.id}`);
  } catch (error) {
    if (error instanceof Unreachable) {
      progress.say("Connection lost. The server goes on writing; looking for it again…");
      await back();
    } else if (error instanceof Refused && PASSING.includes(error.status)) {
      if (error.status !== 429) progress.say("The server cannot tell how far it is; asking again…");
      await pause(1000 * (error.retryAfter ?? 1));
    } else {
      throw error;
    }
    return operation;
  }
}

function told(operation, progress, form, outcome, fact) {
  if (operation.state === "cancelled") {
    replace(outcome, notice("plain", "Cancelled: nothing was written", { text: fact }));
  } else if (operation.state === "failed") {
    progress.failed(ENDED_AT[operation.problem.type]);
    replace(outcome, progress.element, refusal(operation.problem, form));
  } else {
    progress.done(operation.result.report);
    replace(outcome, progress.element, success(operation.result));
    if (!operation.result.dry_run) accepted(operation.result, form, fact);
  }
}

function accepted(result, form, fact) {
  session.keepDraft("key", null);
  heardOf(result.weights_version);
  if (form.elements.fact.value.trim() !== fact.trim()) return; // already the next one
  form.reset();
  session.keepDraft("fact", null);
}

function success(result) {
  const { report } = result;
  const size = `${count(report.columns, "column")}, ${bytes(report.bytes)}, ${seconds(total(report.timings))}`;
  const recall = `Recall ${share(report.recall_after)} on other wordings, ${share(report.locality)} of other answers unchanged; ${size}.`;
  if (result.dry_run) {
    const conflicts = result.conflicts.length;
    const would = conflicts ? ` ${count(conflicts, "stored fact says", "stored facts say")} otherwise.` : "";
    return notice("done", "Measured; nothing was written", { text: recall + would });
  }
  const dead = result.superseded.length;
  const replaced = dead ? ` It replaces ${count(dead, "fact")} that said otherwise.` : "";
  return notice("done", `Known from version ${result.weights_version}`, { text: recall + replaced });
}

function refusal(problem, form) {
  const edit = h("button", { type: "button", onclick: () => form.elements.fact.focus() }, "Change the wording");
  const ask = h("button", { type: "button", onclick: () => opened(form) }, "Add a question");
  if (problem.conflicts) return contradiction(problem, form, edit);
  return notice("refused", problem.title, {
    text: ADVICE[problem.type] ?? problem.detail,
    more: problem.report && measured(problem.report),
    actions: problem.type in ADVICE ? [edit, ask] : [edit],
  });
}

function contradiction(problem, form, edit) {
  const lines = problem.conflicts.map((id) => h("li", {}, id));
  problem.conflicts.forEach((id, index) =>
    call("GET", `facts/${id}`).then(({ fact }) => replace(lines[index], `“${fact}”`), () => {}),
  );
  const over = () => {
    form.elements.on_conflict.value = "supersede";
    form.requestSubmit();
  };
  return notice("refused", problem.title, {
    text: "Stored already:",
    more: h("ul", {}, lines),
    actions: [h("button", { type: "button", onclick: over }, "Replace what is stored"), edit],
  });
}

function opened(form) {
  form.querySelector("details").open = true;
  form.elements.question.focus();
}

/** The five steps of one fact, as far as they have come. */
function stepsOf(fact) {
  const items = STEPS.map(([, name, text]) =>
    h("li", {}, h("span", { class: "name" }, name), h("span", { class: "note" }, text), h("span", { class: "took" })),
  );
  const line = h("p", { class: "state" }, "Sending…");
  const cancel = h("button", { type: "button", class: "quiet", hidden: true }, "Cancel");
  const trouble = h("p", { class: "note" });
  const element = h(
    "div",
    { class: "progress" },
    h("p", { class: "fact" }, fact),
    h("ol", { class: "steps", "aria-label": "Steps of this fact" }, items),
    h("div", { class: "row state-row", role: "status" }, line, trouble, cancel),
  );
  const mark = (at, now) =>
    items.forEach((item, index) => {
      item.dataset.state = index < at ? "done" : index === at ? now : "todo";
      if (index === at && now === "now") item.setAttribute("aria-current", "step");
      else item.removeAttribute("aria-current");
    });
  const end = () => element.querySelector(".state-row")?.remove();
  mark(0, "todo");
  return {
    fact,
    element,
    say: (text) => replace(line, text),
    at(operation) {
      const index = STEPS.findIndex(([id]) => id === operation.step);
      if (index >= 0) mark(index, "now");
      replace(line, operation.state === "pending" ? "Waiting for other writes…" : index < 0 ? "Writing…" : `${STEPS[index][1]}…`);
    },
    cancellable(id) {
      cancel.hidden = false;
      cancel.addEventListener("click", async () => {
        cancel.disabled = true;
        replace(trouble);
        try {
          await call("DELETE", `operations/${id}`);
        } catch (error) {
          replace(trouble, `Not cancelled: ${error.message}`);
          cancel.disabled = false; // the next try may reach the replica that writes it
        }
      });
    },
    failed(step) {
      end();
      const known = STEPS.findIndex(([id]) => id === step);
      const at = known >= 0 ? known : Math.max(items.findIndex((item) => item.dataset.state === "now"), 0);
      mark(at, "failed");
    },
    done(report) {
      end();
      mark(STEPS.length, "now");
      STEPS.forEach(([id], index) => {
        const took = report.timings?.[id];
        const both = id === "write" ? " with the leak check" : "";
        if (took !== undefined) replace(items[index].querySelector(".took"), seconds(took) + both);
      });
    },
  };
}
