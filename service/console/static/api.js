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
const BEHIND_MS = 60_000;
const PULSE = "console/icon.svg"; // leads wherever this page came from, which a probe does not; asks for no key
const VERSION = "X-NPT-Weights-Version"; // of every answer
export const events = new EventTarget();
let askForKey = async () => {
  throw new NotSignedIn();
};
let returned = null;
let newest = -1;
let confirmed = -Infinity;

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

/**
 * The newest version, as an answer told it. Of several replicas one may be behind: a lower number counts where
 * for a minute nobody has told of a higher one, as after a database was restored, or where the server was gone.
 */
export function heardOf(version) {
  if (typeof version !== "number") return;
  if (version < newest && Date.now() - confirmed < BEHIND_MS) return;
  confirmed = Date.now();
  if (version === newest) return;
  newest = version;
  events.dispatchEvent(new CustomEvent("version", { detail: version }));
}

/** Hear of versions that others make, and of a server that is gone. */
export async function listen() {
  if (!(await answers())) back();
}

/** Resolves when the server answers again. */
export function back() {
  if (returned === null) {
    confirmed = -Infinity; // it may be another server that answers
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
    if (await answers()) return;
  }
}

async function answers() {
  try {
    const answer = await fetch(PULSE, { cache: "no-store" });
    if (answer.status >= 500) return false; // a gateway, with nobody behind it
    const version = answer.headers.get(VERSION);
    if (version !== null) heardOf(Number(version));
    return true;
  } catch {
    return false;
  }
}
