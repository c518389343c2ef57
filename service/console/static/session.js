// Who is asking. The key is kept for this tab alone, and goes with it.

const KEY = "npt.key";
let shown = null;

export function key() {
  return sessionStorage.getItem(KEY);
}

export function keep(secret) {
  sessionStorage.setItem(KEY, secret);
}

export function forget() {
  sessionStorage.removeItem(KEY);
  shown = null;
}

/** What `GET /keys/self` told. */
export function identified(answer) {
  shown = answer;
}

export function who() {
  return shown;
}

export function allows(scope) {
  return shown !== null && shown.scopes.includes(scope);
}

/** What was typed, so that neither a reload nor a key that expired loses it. */
export function draft(name) {
  try {
    return JSON.parse(sessionStorage.getItem(`npt.draft.${name}`)) ?? {};
  } catch {
    return {};
  }
}

export function keepDraft(name, values) {
  if (values === null) sessionStorage.removeItem(`npt.draft.${name}`);
  else sessionStorage.setItem(`npt.draft.${name}`, JSON.stringify(values));
}
