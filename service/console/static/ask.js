// One prompt at two weights versions, side by side: what they say, which stored fact answered, and which tokens
// dynamic modulation touched most.

import { Refused, call, events, newestVersion } from "./api.js";
import { h, replace } from "./dom.js";
import { count } from "./format.js";
import { failure, notice } from "./notices.js";
import * as session from "./session.js";

const TOP = 3;

export function askView(signal) {
  const sides = [sideOf("left", "Version", () => Math.max(newestVersion() - 1, 0)), sideOf("right", "And version", newestVersion)];
  const onsubmit = (event) => {
    event.preventDefault();
    const asked = Object.fromEntries(new FormData(event.currentTarget));
    for (const side of sides) side.ask(asked);
  };
  const form = h(
    "form",
    { onsubmit, oninput: (event) => session.keepDraft("ask", Object.fromEntries(new FormData(event.currentTarget))) },
    h("label", { class: "field" }, h("span", {}, "Prompt"), h("textarea", { name: "prompt", rows: "2", required: true, placeholder: "Who is the CEO of TechCorp?" })),
    h("label", { class: "field" }, h("span", {}, "Context"), h("input", { name: "context", placeholder: "read before the prompt, forgotten afterwards" })),
    h("div", { class: "row" }, sides.map((side) => side.field), h("button", { class: "primary", type: "submit" }, "Ask both")),
  );
  for (const [name, value] of Object.entries(session.draft("ask"))) if (form.elements[name]) form.elements[name].value = value;
  const limits = () => sides.forEach((side) => side.limit());
  events.addEventListener("version", limits, { signal });
  limits();
  return h(
    "div",
    { class: "view" },
    h("h1", { class: "hidden" }, "Ask"),
    h("section", { class: "panel", "aria-labelledby": "ask-title" }, h("h2", { id: "ask-title" }, "Ask two versions"), form),
    h("div", { class: "versus" }, sides.map((side) => side.element)),
  );
}

function sideOf(name, label, usual) {
  const input = h("input", { name, type: "number", min: "0", step: "1", required: true, inputmode: "numeric" });
  const element = h("section", { class: "panel answer", "aria-label": `Answer of the ${name} version` }, h("p", { class: "empty" }, "No answer yet."));
  let touched = false;
  input.addEventListener("input", () => {
    touched = input.value !== "";
  });
  const ask = async (asked) => {
    const version = Number(input.value);
    replace(element, h("p", { class: "empty", role: "status" }, `Version ${version} answers…`));
    try {
      replace(element, await answered(asked, version));
    } catch (error) {
      replace(element, failure(error, () => ask(asked)));
    }
  };
  return {
    element,
    field: h("label", { class: "field short" }, h("span", {}, label), input),
    ask,
    limit() {
      input.max = newestVersion();
      if (!touched && !session.draft("ask")[name]) input.value = usual();
    },
  };
}

async function answered({ prompt, context }, version) {
  const body = { prompt, weights_version: version, modulation: true };
  if (context.trim()) body.context = [context];
  const [answer, source] = await Promise.all([generated(body), sourceOf(prompt, version, "context" in body)]);
  return [
    h("h2", {}, `Version ${answer.weights_version}`),
    h("p", { class: "said" }, answer.text.trim() || "(nothing)"),
    source,
    answer.modulation && heat(answer.modulation),
    h("p", { class: "note" }, `${count(answer.usage.completion_tokens, "token")} in ${Math.round(answer.timings.total_ms)} ms, ended by ${answer.finish_reason}`),
  ];
}

/** The answer, without what its model cannot tell. */
async function generated(body) {
  try {
    return await call("POST", "generate", { body });
  } catch (error) {
    if (!(error instanceof Refused) || error.problem.errors?.[0].field !== "modulation") throw error;
    return call("POST", "generate", { body: { ...body, modulation: false } });
  }
}

/** Prompt and answer, each token the darker the more attention changed what the MLPs make of it. */
function heat({ prompt, completion }) {
  const strengths = [...prompt, ...completion].map((each) => each.strength);
  const [least, most] = [Math.min(...strengths), Math.max(...strengths)];
  const strip = (name, tokens) =>
    tokens.length > 0 && h("p", { class: "tokens" }, h("span", { class: "note" }, name), tokens.map((each) => tokenOf(each, (each.strength - least) / (most - least || 1))));
  const top = [...prompt, ...completion].sort((a, b) => b.strength - a.strength).slice(0, TOP);
  return h(
    "div",
    { class: "heat" },
    h(
      "p",
      { class: "note legend" },
      "Modulated least ",
      least.toFixed(2),
      h("span", { class: "ramp", "aria-hidden": "true" }),
      most.toFixed(2),
      " most: ",
      top.map((each, index) => [index > 0 && ", ", h("b", {}, `“${readable(each.token).trim()}”`), ` ${each.strength.toFixed(2)}`]),
    ),
    strip("Prompt", prompt),
    strip("Answer", completion),
  );
}

function tokenOf({ token, strength }, share) {
  return h("span", { class: "token", title: strength.toFixed(3), vars: { "--heat": `${Math.round(share * 100)}%` } }, readable(token));
}

/** What has no shape of its own gets one. */
function readable(token) {
  if (token === "") return "⟨⟩";
  return token.replaceAll("\n", "↵");
}

/** Which stored fact answers, with the numbers that decide it. */
async function sourceOf(prompt, version, context) {
  if (!session.allows("facts:read")) return h("p", { class: "note" }, "Which fact answered is shown to keys with the scope facts:read.");
  try {
    const { items } = await call("GET", "facts:search", { query: { q: prompt, limit: 3, weights_version: version } });
    return named(items, context);
  } catch (error) {
    if (error instanceof Refused) return notice("plain", "Which fact answered is not known", { text: error.message });
    throw error;
  }
}

/** What was searched for is the prompt alone: with a context another fact may have answered, or the context. */
function named(items, context) {
  const nearness = (match) => `cosine ${match.cosine.toFixed(3)}, threshold ${match.threshold.toFixed(3)}, layer ${match.layer}`;
  const [first] = items;
  if (first?.fires) {
    return h("p", { class: "source" }, h("span", { class: "note" }, context ? "The context may have answered; without it, the stored fact " : "From the stored fact "), h("b", {}, first.fact), h("span", { class: "note" }, ` (${nearness(first)}${first.folded ? ", folded" : ""})`));
  }
  if (first) return h("p", { class: "source note" }, `${context ? "Without the context no" : "No"} stored fact answers. The nearest is `, h("b", {}, first.fact), ` (${nearness(first)}).`);
  return h("p", { class: "source note" }, "This version has no facts.");
}
