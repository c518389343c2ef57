// Asks for an API key over whatever is on the page, which stays as it is.

import { NotSignedIn, Refused, callWith } from "./api.js";
import { h, replace } from "./dom.js";
import * as session from "./session.js";

const KEY = /^[\x21-\x7e]+$/; // of others a browser makes no header
let open = null;

/** Returns once a key that works is kept; one dialog, however many calls wait for it. */
export function askForKey(refused) {
  if (session.key() !== null && session.key() !== refused) return Promise.resolve(); // changed meanwhile
  open ??= dialog(refused !== null).finally(() => {
    open = null;
  });
  return open;
}

function dialog(hadOne) {
  return new Promise((done, failed) => {
    const field = h("input", {
      id: "api-key",
      type: "password",
      autocomplete: "off",
      spellcheck: "false",
      required: true,
      "aria-describedby": "key-note",
    });
    const message = h("div", { role: "alert", class: "key-refused" });
    const box = h(
      "dialog",
      { class: "signin", "aria-labelledby": "signin-title", onclose: () => ended(box, done, failed) },
      h("h2", { id: "signin-title" }, hadOne ? "Your API key is not valid any more" : "Sign in"),
      h(
        "p",
        { id: "key-note" },
        hadOne
          ? "It has expired or was revoked. What you typed is kept: with another key you go on where you were."
          : "This server asks for an API key, as “npt keys create” makes them. It is kept in this tab alone.",
      ),
      h(
        "form",
        { method: "dialog", onsubmit: (event) => submitted(event, box, field, message) },
        h("label", { for: "api-key" }, "API key"),
        field,
        message,
        h(
          "p",
          { class: "actions" },
          h("button", { class: "primary", type: "submit" }, "Sign in"),
          h("button", { type: "button", onclick: () => box.close() }, "Not now"),
        ),
      ),
    );
    document.body.append(box);
    box.showModal();
    field.focus();
  });
}

async function submitted(event, box, field, message) {
  event.preventDefault();
  replace(message);
  const secret = field.value.trim();
  const refused = await refusal(secret);
  if (refused !== null) {
    replace(message, h("p", {}, refused));
    field.select();
    return;
  }
  session.keep(secret);
  box.returnValue = "signed-in";
  box.close("signed-in");
}

/** What is wrong with a key; `null` where it is one, and known from now on. */
async function refusal(secret) {
  if (!KEY.test(secret)) return "This is no key: keys have neither spaces nor other than ASCII characters.";
  try {
    session.identified(await callWith(secret, "keys/self"));
    return null;
  } catch (error) {
    return error instanceof Refused && error.status === 401 ? "The server does not accept this key." : error.message;
  }
}

function ended(box, done, failed) {
  box.remove();
  if (box.returnValue === "signed-in") done();
  else failed(new NotSignedIn());
  document.dispatchEvent(new Event("identity"));
}
