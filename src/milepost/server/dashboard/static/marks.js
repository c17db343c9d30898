// Where a document differs from the one before it, laid out as the tree is: for each place what was there before, and what is gone.

/** @typedef {import("./json.js").JSONValue} JSONValue */
/** @typedef {import("./path.js").Segment} Segment */
/** @typedef {import("./difference.js").Difference} Difference */

/** What is gone from a place: its name or position then, its value, and the position of what stands behind it now.
 * @typedef {{name: Segment, value: JSONValue, next?: number}} Gone */

/** The marks of one place and of those inside it. */
export class Marks {
  constructor() {
    /** @type {Map<Segment, Marks>} */
    this.inner = new Map();
    /** @type {Gone[]} */
    this.gone = [];
    /** @type {"added" | "changed" | "inside" | null} */
    this.kind = null;
    /** What was here, of a place that has changed. @type {JSONValue | undefined} */
    this.before = undefined;
  }

  /** @param {Difference} difference */
  add({ path, before, after, next }) {
    /** @type {Marks} */
    let place = this;
    const last = /** @type {Segment} */ (path.at(-1));
    for (const segment of path.slice(0, -1)) {
      place = place.enter(segment);
      place.kind ??= "inside";
    }
    if (after === undefined) {
      place.gone.push({ name: last, value: /** @type {JSONValue} */ (before), next });
      return;
    }
    place = place.enter(last);
    place.kind = before === undefined ? "added" : "changed";
    place.before = before;
  }

  /** @param {Segment} segment */
  enter(segment) {
    let inner = this.inner.get(segment);
    if (inner === undefined) this.inner.set(segment, (inner = new Marks()));
    return inner;
  }
}

/** @param {Iterable<Difference>} differences */
export function marksOf(differences) {
  const marks = new Marks();
  for (const difference of differences) marks.add(difference);
  return marks;
}
