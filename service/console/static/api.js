// One way to the server. Every call ends with an answer, with `Refused`, or with `Unreachable`.

import * as session from "./session.js";

/** The server said no; `problem` says why (RFC 9457). */
export class Refused extends Error {
  constructor(status, problem, retryAfter) {
    super(problem.detail ?? problem.title ?? `The server answered ${status}.`);
    this.status = status;
    this.problem = problem;
    this.retryAfter = retryAfter;
  }
}

/** No answer came: it is not known whether the request arrived. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

/** Whoever asked would rather not sign in. */
export class NotSignedIn extends Error {
  constructor() {
    super("An API key is needed.");
  }
}

const LOOK_AGAIN_MS = 1000;
export const events = new EventTarget();
let askForKey = async () => {
  throw new NotSignedIn();
};
let returned = null;
let newest = -1;

/** From now on `ask(reason)` is called where a key is missing or refused; it returns once there is another. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** Ask the server; a key that is refused is asked for again, and then the request goes once more. */
export async function call(method, path, { body, headers = {}, query } = {}) {
  for (;;) {
    const used = session.key();
    const answer = await sent(method, path, used, body, headers, query);
    if (answer.status !== 401) return opened(answer);
    await askForKey(used, (await problemOf(answer)).detail);
  }
}

/** Ask with one key, without a second try: for signing in. */
export async function callWith(secret, path) {
  return opened(await sent("GET", path, secret, undefined, {}, undefined));
}

export const newestVersion = () => newest;

/** The newest version, as an answer or an event told it. */
export function heardOf(version) {
  if (typeof version !== "number" || version === newest) return;
  newest = version;
  events.dispatchEvent(new CustomEvent("version", { detail: version }));
}

/** Resolves when the server answers again. */
export function back() {
  if (returned === null) {
    events.dispatchEvent(new Event("lost"));
    returned = lookOut().finally(() => {
      returned = null;
      events.dispatchEvent(new Event("back"));
    });
  }
  return returned;
}

export const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function sent(method, path, secret, body, headers, query) {
  const wanted = Object.entries(query ?? {}).filter(([, value]) => value !== undefined && value !== null);
  // `facts:search` alone would be an address with a scheme.
  const address = wanted.length ? `./${path}?${new URLSearchParams(wanted)}` : `./${path}`;
  const all = { ...headers };
  if (secret) all.Authorization = `Bearer ${secret}`;
  if (body !== undefined) all["Content-Type"] = "application/json";
  try {
    return await fetch(address, {
      method,
      headers: all,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
    });
  } catch {
    back();
    throw new Unreachable();
  }
}

async function opened(answer) {
  if (!answer.ok) {
    const wait = Number(answer.headers.get("Retry-After")) || null;
    throw new Refused(answer.status, await problemOf(answer), wait);
  }
  try {
    return await answer.json();
  } catch {
    back();
    throw new Unreachable(); // the connection broke in the middle of the answer
  }
}

async function problemOf(answer) {
  try {
    return await answer.json();
  } catch {
    return { title: `The server answered ${answer.status}.` };
  }
}

async function lookOut() {
  for (;;) {
    await Promise.race([pause(LOOK_AGAIN_MS), new Promise((go) => addEventListener("online", go, { once: true }))]);
    try {
      if ((await fetch("livez", { cache: "no-store" })).ok) return;
    } catch {
      // not yet
    }
  }
}
