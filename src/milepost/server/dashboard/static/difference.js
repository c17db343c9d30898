// What differs between two documents: the places that were added, removed or changed.
//
// Documents that follow one another share whatever did not change (see `operations.js`), and the same object need not be looked into. So
// the cost follows what changed, except where a whole document was replaced.

/** @typedef {import("./json.js").JSONValue} JSONValue */
/** @typedef {import("./path.js").Segment} Segment */

/**
 * One place that differs. `path` is a place of the later document; of what was removed, a place of the earlier one. `before` is
 * undefined for what was added, `after` for what was removed. `next` is given for removed elements of an array: the position in the
 * later array of the first element behind them that stayed.
 *
 * @typedef {{path: Segment[], before: JSONValue | undefined, after: JSONValue | undefined, next?: number}} Difference
 */

/** @typedef {(difference: Difference) => void} Visit */

/**
 * Tell every place that differs. A container that was added or removed is one place, whatever is in it.
 *
 * @param {JSONValue} before
 * @param {JSONValue} after
 * @param {Visit} visit
 * @param {Segment[]} [path]
 */
export function differences(before, after, visit, path = []) {
  if (Object.is(before, after)) return;
  if (before instanceof Map && after instanceof Map) {
    for (const [name, value] of before) {
      const inner = [...path, name];
      if (after.has(name)) differences(value, after.get(name), visit, inner);
      else visit({ path: inner, before: value, after: undefined });
    }
    for (const [name, value] of after) {
      if (!before.has(name)) visit({ path: [...path, name], before: undefined, after: value });
    }
  } else if (Array.isArray(before) && Array.isArray(after)) {
    differencesOfArrays(before, after, visit, path);
  } else {
    visit({ path, before, after });
  }
}

/**
 * @param {JSONValue[]} before
 * @param {JSONValue[]} after
 * @param {Visit} visit
 * @param {Segment[]} path
 */
function differencesOfArrays(before, after, visit, path) {
  let start = 0;
  while (start < before.length && start < after.length && same(before[start], after[start])) start += 1;
  let tail = 0;
  const room = Math.min(before.length, after.length) - start;
  while (tail < room && same(before[before.length - 1 - tail], after[after.length - 1 - tail])) tail += 1;
  const beforeEnd = before.length - tail;
  const afterEnd = after.length - tail;
  const stay = stayers(before.slice(start, beforeEnd), after.slice(start, afterEnd));
  let position = start;
  for (const [distance, value] of before.slice(start, beforeEnd).entries()) {
    // Where nothing is seen to have stayed, what stands at the same position is compared.
    if (stay === null ? position < afterEnd : stay[distance]) {
      if (stay === null) differences(value, /** @type {JSONValue} */ (after[position]), visit, [...path, position]);
      position += 1;
    } else {
      visit({ path: [...path, start + distance], before: value, after: undefined, next: position });
    }
  }
  for (; position < afterEnd; position += 1) visit({ path: [...path, position], before: undefined, after: after[position] });
}

/**
 * Which elements of the earlier array are still there, in front of those that are new: so `append` (with `maxItems` too) and `remove`
 * leave it. Null if it is not so, and when nothing stayed.
 *
 * @param {JSONValue[]} before
 * @param {JSONValue[]} after
 * @returns {boolean[] | null}
 */
function stayers(before, after) {
  let position = 0;
  const stay = before.map((item) => {
    const stays = position < after.length && same(item, after[position]);
    if (stays) position += 1;
    return stays;
  });
  // What comes last of the earlier elements must be among those found, or this is only a chance resemblance.
  return before.length === 0 || position === after.length || (position > 0 && stay.at(-1)) ? stay : null;
}

/**
 * The same JSON to the last digit.
 *
 * @param {JSONValue | undefined} left
 * @param {JSONValue | undefined} right
 * @returns {boolean}
 */
export function same(left, right) {
  if (Object.is(left, right)) return true;
  if (Array.isArray(left) && Array.isArray(right)) {
    return left.length === right.length && left.every((item, position) => same(item, right[position]));
  }
  if (left instanceof Map && right instanceof Map) {
    if (left.size !== right.size) return false;
    for (const [name, member] of left) {
      if (!right.has(name) || !same(member, right.get(name))) return false;
    }
    return true;
  }
  return false;
}
