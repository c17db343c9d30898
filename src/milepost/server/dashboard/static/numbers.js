// The numbers of a document over its versions: which ones there are, and at which versions each had which value.
//
// A number is known by its place. Only what changes is noted, so a number that never changes costs nothing and is not shown.

import { differences } from "./difference.js";
import { isNumber } from "./json.js";

/** @typedef {import("./json.js").JSONValue} JSONValue */
/** @typedef {import("./json.js").JSONObject} JSONObject */
/** @typedef {import("./path.js").Segment} Segment */

/**
 * From this version on, reached at this time (microseconds since 1970, 0 where it is not known), the number had this value; null: there
 * was no number.
 *
 * @typedef {[version: number, at: number, value: number | bigint | null]} Point
 */

/** @typedef {{path: Segment[], points: Point[]}} Series */

/** Numbers that are followed in one stretch of versions, and those that are looked for in one value that was put in. */
const SERIES_MAX = 300;
const NUMBERS_OF_A_VALUE = 50;
/** Numbers that are shown, and points of each. */
const SHOWN_MAX = 60;
const POINTS_MAX = 400;
/** Numbers that change at least so often come first. */
const OFTEN = 3;

/** The numbers of one stretch of versions. */
export class Numbers {
  /**
   * @param {number} start the version before the first change
   */
  constructor(start) {
    this.start = start;
    this.reached = start;
    this.at = 0;
    /** By place, as JSON. @type {Map<string, Series>} */
    this.series = new Map();
    /** Arrays from which something was taken: their positions do not mean the same places all the time. @type {Set<string>} */
    this.shifting = new Set();
    /** Objects and arrays that were taken out, and with them what was inside. @type {{path: Segment[], version: number, at: number}[]} */
    this.ends = [];
  }

  /**
   * Take in one change.
   *
   * @param {number} version
   * @param {number} at
   * @param {JSONObject} before
   * @param {JSONObject} after
   */
  add(version, at, before, after) {
    this.reached = version;
    this.at = at;
    differences(before, after, (difference) => {
      const { path } = difference;
      if (difference.next !== undefined) {
        this.shifting.add(JSON.stringify(path.slice(0, -1)));
      } else if (isNumber(difference.after)) {
        this.note(path, [version, at, difference.after], difference.before);
      } else {
        if (isNumber(difference.before)) this.note(path, [version, at, null], difference.before);
        for (const [place, value] of numbersIn(difference.after, path)) this.note(place, [version, at, value], undefined);
      }
      if (typeof difference.before === "object" && difference.before !== null) this.ends.push({ path, version, at });
    });
  }

  /**
   * @param {Segment[]} path
   * @param {Point} point
   * @param {JSONValue | undefined} before what was there
   */
  note(path, point, before) {
    const key = JSON.stringify(path);
    let series = this.series.get(key);
    if (series === undefined) {
      // What is put at the end of an array is one number of many, until it changes.
      if (this.series.size >= SERIES_MAX || (isInArray(path) && before === undefined)) return;
      series = { path, points: [] };
      // In an object it was there from the start of this stretch, or else it would be known.
      if (isNumber(before)) series.points.push([isInArray(path) ? point[0] - 1 : this.start, 0, before]);
      this.series.set(key, series);
    }
    const last = series.points.at(-1);
    if (last?.[0] === point[0]) series.points.pop();
    series.points.push(point);
  }
}

/**
 * The numbers inside objects of a value, with their places.
 *
 * @param {JSONValue | undefined} value
 * @param {Segment[]} path
 * @param {[Segment[], number | bigint][]} [found]
 */
function numbersIn(value, path, found = []) {
  if (!(value instanceof Map)) return found;
  for (const [name, member] of value) {
    if (found.length >= NUMBERS_OF_A_VALUE) break;
    const place = [...path, name];
    if (isNumber(member)) found.push([place, member]);
    else numbersIn(member, place, found);
  }
  return found;
}

/**
 * Join the numbers of neighbouring stretches: of the longest row of them that has no gap.
 *
 * @param {Numbers[]} stretches in order of their versions
 * @returns {{from: number, to: number, until: number, series: Series[], total: number}} the versions that are covered, when the last
 *   one was reached, the numbers to show, and how many there are
 */
export function joined(stretches) {
  const row = longestRow(stretches);
  const from = row[0]?.start ?? 0;
  /** @type {Map<string, Series>} */
  const all = new Map();
  const shifting = new Set(row.flatMap((stretch) => [...stretch.shifting]));
  for (const stretch of row) {
    for (const [key, { path, points }] of stretch.series) {
      const known = all.get(key);
      if (known === undefined) all.set(key, { path, points: fromTheStart(points, stretch.start, from) });
      // The first point repeats what is known, unless the number was not there.
      else known.points.push(...points.filter((point) => point[0] > (known.points.at(-1)?.[0] ?? 0) && point[0] > stretch.start));
    }
  }
  for (const end of row.flatMap((stretch) => stretch.ends)) {
    for (const [key, series] of all) {
      if (!isInside(series.path, end.path)) continue;
      // An array that comes again is another one.
      if (isInArray(series.path)) all.delete(key);
      else series.points = ended(series.points, end);
    }
  }
  const telling = [...all.values()].filter(({ path, points }) => isTelling(points) && !isBelow(path, shifting));
  const often = telling.filter(({ points }) => points.length > OFTEN);
  const seldom = telling.filter(({ points }) => points.length <= OFTEN);
  const shown = [...often, ...seldom].slice(0, SHOWN_MAX);
  return {
    from,
    to: row.at(-1)?.reached ?? 0,
    until: row.at(-1)?.at ?? 0,
    series: shown.map(({ path, points }) => ({ path, points: thinned(points) })),
    total: telling.length,
  };
}

/**
 * A number that was there at the start of a stretch, and that no stretch before it speaks of, has been there all the time.
 *
 * @param {Point[]} points
 * @param {number} start
 * @param {number} from
 */
function fromTheStart(points, start, from) {
  return points.map((point) => (point[0] === start ? /** @type {Point} */ ([from, 0, point[2]]) : point));
}

/**
 * @param {Segment[]} path
 * @param {Segment[]} container
 */
function isInside(path, container) {
  return path.length > container.length && container.every((segment, depth) => segment === path[depth]);
}

/** @param {Segment[]} path */
function isInArray(path) {
  return path.some((segment) => typeof segment === "number");
}

/**
 * The points of a number whose surroundings were taken out at a version, unless it was put in again by the same one.
 *
 * @param {Point[]} points
 * @param {{version: number, at: number}} end
 */
function ended(points, { version, at }) {
  const position = points.findLastIndex((point) => point[0] <= version);
  const point = points[position];
  if (point === undefined || point[0] === version || point[2] === null) return points;
  return points.toSpliced(position + 1, 0, [version, at, null]);
}

/** @param {Numbers[]} stretches */
function longestRow(stretches) {
  /** @type {Numbers[]} */
  let longest = [];
  /** @type {Numbers[]} */
  let row = [];
  for (const stretch of stretches) {
    row = row.at(-1)?.reached === stretch.start ? [...row, stretch] : [stretch];
    if (versionsOf(row) >= versionsOf(longest)) longest = row;
  }
  return longest;
}

/** @param {Numbers[]} row */
function versionsOf(row) {
  return (row.at(-1)?.reached ?? 0) - (row[0]?.start ?? 0);
}

/** @param {Point[]} points */
function isTelling(points) {
  return new Set(points.flatMap(([, , value]) => (value === null ? [] : [String(value)]))).size > 1;
}

/**
 * @param {Segment[]} path
 * @param {Set<string>} arrays
 */
function isBelow(path, arrays) {
  return arrays.size > 0 && path.some((_, depth) => arrays.has(JSON.stringify(path.slice(0, depth))));
}

/**
 * At most so many points, of which those at the edges of what is left out are kept: first and last, lowest and highest.
 *
 * @param {Point[]} points
 */
export function thinned(points) {
  if (points.length <= POINTS_MAX) return points;
  const size = Math.ceil(points.length / (POINTS_MAX / 4));
  /** @type {Set<Point>} */
  const kept = new Set();
  for (let start = 0; start < points.length; start += size) {
    const bucket = points.slice(start, start + size);
    const values = bucket.filter(([, , value]) => value !== null);
    let low = values[0];
    let high = values[0];
    for (const point of values) {
      if (Number(point[2]) < Number(low?.[2])) low = point;
      if (Number(point[2]) > Number(high?.[2])) high = point;
    }
    const chosen = new Set([bucket[0], low, high, bucket.find(([, , value]) => value === null), bucket.at(-1)]);
    for (const point of bucket) if (chosen.has(point)) kept.add(point);
  }
  return [...kept];
}
