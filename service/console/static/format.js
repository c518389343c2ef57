// Numbers and moments as people read them.

/** A share of 0 to 1, to three places; a dash for what was not measured. */
export function share(value) {
  return typeof value === "number" ? value.toFixed(3).replace(/0$/, "") : "–";
}

export function seconds(value) {
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(2)} s`;
}

export function bytes(value) {
  if (value < 1000) return `${value} B`;
  return value < 1e6 ? `${(value / 1000).toFixed(1)} kB` : `${(value / 1e6).toFixed(1)} MB`;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** A moment in the reader's own time zone, without what is obvious. */
export function moment(text) {
  const at = new Date(text);
  const today = new Date().toDateString() === at.toDateString();
  const time = at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  if (today) return time;
  return `${at.toLocaleDateString("en-CA")} ${time.slice(0, 5)}`;
}

/** All seconds that the stages of a write took. */
export function total(timings) {
  return Object.values(timings ?? {}).reduce((sum, each) => sum + each, 0);
}
