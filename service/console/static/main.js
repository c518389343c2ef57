// The page around the views: which one is shown, who is signed in, whether the server answers.

import { NotSignedIn, back, call, events, heardOf, listen, onKeyNeeded } from "./api.js";
import { askView } from "./ask.js";
import { h, replace } from "./dom.js";
import { factsView } from "./facts.js";
import { failure } from "./notices.js";
import * as session from "./session.js";
import { askForKey } from "./signin.js";
import { versionsView } from "./versions.js";

const LISTEN_MS = 5000;
const VIEWS = {
  facts: { name: "Facts", open: factsView, scopes: ["facts:read", "facts:write"] },
  versions: { name: "Versions", open: versionsView, scopes: ["facts:read"] },
  ask: { name: "Ask", open: askView, scopes: ["generate"] },
};
const main = document.getElementById("main");
let left = new AbortController();

function allowedViews() {
  return Object.entries(VIEWS).filter(([, view]) => view.scopes.some(session.allows));
}

function current() {
  const named = location.hash.replace(/^#\//, "");
  const allowed = allowedViews().map(([id]) => id);
  return allowed.includes(named) ? named : (allowed[0] ?? null);
}

function draw() {
  const id = current();
  drawBar();
  left.abort();
  left = new AbortController();
  document.title = id ? `${VIEWS[id].name} · NPT console` : "NPT console";
  replace(main, id ? VIEWS[id].open(left.signal) : h("p", { class: "empty" }, "Your API key opens nothing that the console shows."));
}

/** What is around the view, which stays as it is when another key is shown. */
function drawBar() {
  const id = current();
  const links = allowedViews().map(([each, view]) => h("a", { href: `#/${each}`, "aria-current": each === id ? "page" : null }, view.name));
  replace(document.getElementById("views"), links);
  const place = document.getElementById("who");
  const known = session.who();
  if (known === null) replace(place, h("button", { type: "button", class: "quiet", onclick: begin }, "Sign in"));
  else if (known.name === null) replace(place, h("span", { class: "muted" }, "no keys needed"));
  else replace(place, h("span", { class: "muted", title: known.scopes.join(", ") }, known.name), h("button", { type: "button", class: "quiet", onclick: signOut }, "Sign out"));
}

function signOut() {
  session.forget();
  for (const name of ["fact", "ask", "key", "operation"]) session.keepDraft(name, null);
  left.abort(); // what was shown asks for nothing more
  replace(main);
  begin();
}

async function begin() {
  try {
    const answer = await call("GET", "keys/self");
    session.identified(answer);
    heardOf(answer.weights_version);
    draw();
  } catch (error) {
    drawBar();
    const note = error instanceof NotSignedIn ? "This server asks for an API key." : null;
    replace(main, failure(error, begin, error instanceof NotSignedIn ? "Sign in" : "Try again"), note && h("p", { class: "empty" }, note));
  }
}

function tellConnection(lost) {
  replace(
    document.getElementById("connection"),
    lost ? h("p", {}, h("b", {}, "Connection lost."), " What you typed is kept; the page goes on by itself when the server answers.") : null,
  );
}

onKeyNeeded(askForKey);
events.addEventListener("version", (event) => replace(document.getElementById("newest"), "version ", h("b", {}, event.detail)));
events.addEventListener("lost", () => tellConnection(true));
events.addEventListener("back", () => {
  tellConnection(false);
  if (session.who() === null) begin();
});
document.addEventListener("identity", drawBar);
addEventListener("hashchange", () => {
  if (!location.hash.startsWith("#/")) return;
  draw();
  main.focus({ preventScroll: true }); // the link that had it was drawn anew
});
addEventListener("offline", () => back());
setInterval(() => document.hidden || listen(), LISTEN_MS);
begin();
