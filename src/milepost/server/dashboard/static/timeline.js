// The history of one document as it is needed: blocks of versions, each with the document at its start and the changes that follow.
//
// A version is reached by folding the changes of its block, so whatever version is asked for, the cost is one block. A block is read
// when somebody looks at it; its start is the end of the block before it where that is here, and else is asked for. Where changes are
// as large as documents, the two documents are asked for instead.

import { AnswerError } from "./api.js";
import { Numbers } from "./numbers.js";
import { apply } from "./operations.js";

/** @typedef {import("./json.js").JSONObject} JSONObject */
/** @typedef {import("./json.js").JSONValue} JSONValue */

/** One committed change: version, when (microseconds since 1970), operations, who wrote (null: from outside).
 * @typedef {{version: number, at: number, operations: JSONValue[], writer: {run: string, attempt: number} | null}} Change */

/** A page of changes as the API gives it, and the characters that it took.
 * @typedef {{changes: Change[], earliest: number, more: boolean, size: number}} Page */

/**
 * Where a timeline reads from.
 *
 * @typedef {object} Source
 * @property {(after: number, size: number) => Promise<Page>} changes
 * @property {(version: number) => Promise<JSONObject>} document throws AnswerError 410 for a version that is not kept any more
 */

/** Versions of a block. */
export const BLOCK = 500;
/** Characters of changes that a block may have for the sake of one version. */
const SIZE_AT_ONCE = 4_000_000;
/** Characters of changes that are kept; blocks that nobody has looked at for longest go first. */
const SIZE_KEPT = 32_000_000;

/** Thrown when older changes were pruned while this timeline was in use: it begins later now. */
export class PrunedError extends Error {}

class Block {
  /**
   * @param {number} start the version at which it begins
   * @param {number} end the last version that may be in it
   * @param {JSONObject} document the document at its start
   */
  constructor(start, end, document) {
    this.start = start;
    this.end = end;
    this.document = document;
    /** @type {Change[]} */
    this.changes = [];
    this.size = 0;
    this.numbers = new Numbers(start);
    // Where the fold stands that feeds the numbers, and the last one that was asked for.
    this.newest = document;
    this.shown = { version: start, document };
  }

  /** The last version that is here. */
  get reached() {
    return this.start + this.changes.length;
  }

  /** @param {Page} page */
  add(page) {
    this.size += page.size;
    for (const change of page.changes) {
      if (change.version > this.end) break;
      if (change.version !== this.reached + 1) throw new Error(`version ${this.reached + 1} is missing`);
      const document = fold(this.newest, [change]);
      this.numbers.add(change.version, change.at, this.newest, document);
      this.newest = document;
      this.changes.push(change);
    }
  }

  /**
   * @param {number} version one that is here
   * @returns {JSONObject}
   */
  at(version) {
    if (version === this.reached) return this.newest;
    if (version < this.shown.version) this.shown = { version: this.start, document: this.document };
    const changes = this.changes.slice(this.shown.version - this.start, version - this.start);
    this.shown = { version, document: fold(this.shown.document, changes) };
    return this.shown.document;
  }
}

/**
 * The document after some changes. An id that had been counted is not in the log a second time, so every one is new here.
 *
 * @param {JSONObject} document
 * @param {Change[]} changes
 */
function fold(document, changes) {
  const folded = apply(document, changes.flatMap((change) => change.operations));
  if (folded.refusals.length > 0) throw new Error(`a change that was applied cannot be: ${folded.refusals[0]?.message}`);
  return folded.document;
}

export class Timeline {
  /**
   * @param {Source} source
   * @param {number} newest the newest version
   */
  constructor(source, newest) {
    this.source = source;
    this.newest = newest;
    /** The earliest version that is kept; unknown until something was read. */
    this.earliest = 0;
    /** Blocks by number, the one that was looked at last at the end. @type {Map<number, Block>} */
    this.blocks = new Map();
    // One reading at a time, so that nothing is asked for twice.
    /** @type {Promise<unknown>} */
    this.turn = Promise.resolve();
  }

  /** Read where the history begins, and what it begins with. */
  open() {
    return this.inTurn(async () => {
      this.earliest = (await this.source.changes(0, 1)).earliest;
    });
  }

  /**
   * The document at a version and the one before it, with the change between them; neither of these at the earliest version.
   *
   * @param {number} version
   * @returns {Promise<{document: JSONObject, before: JSONObject | null, change: Change | null}>}
   */
  at(version) {
    return this.inTurn(async () => {
      if (version <= this.earliest) {
        const block = await this.block(this.numberOf(this.earliest + 1));
        return { document: block.document, before: null, change: null };
      }
      const block = await this.block(this.numberOf(version));
      if (block.reached < version && block.size < SIZE_AT_ONCE) await this.extend(block, version);
      if (block.reached < version) return this.directly(version);
      const before = block.at(version - 1);
      return { document: block.at(version), before, change: block.changes[version - block.start - 1] ?? null };
    });
  }

  /** @param {number} version */
  async directly(version) {
    const [before, page] = await Promise.all([this.source.document(version - 1), this.source.changes(version - 1, 1)]);
    const change = page.changes[0];
    if (change?.version !== version) throw new Error(`there is no version ${version}`);
    return { document: fold(before, [change]), before, change };
  }

  /**
   * Read one more page of the block of a version.
   *
   * @param {number} version
   * @returns {Promise<boolean>} true when all of the block is here
   */
  read(version) {
    return this.inTurn(async () => {
      const number = this.numberOf(version);
      const block = await this.block(number);
      const last = Math.min(this.newest, block.end);
      if (block.reached < last) await this.extend(block, block.end);
      return block.reached >= last;
    });
  }

  /**
   * The highest version that was reached at or before a time, of those that have been read; the earliest if there is none.
   *
   * @param {number} at microseconds since 1970
   */
  versionAt(at) {
    let found = this.earliest;
    for (const block of this.blocks.values()) {
      for (const change of block.changes) {
        if (change.at <= at && change.version > found) found = change.version;
      }
    }
    return found;
  }

  /** The numbers of every block that is here, in order of their versions. */
  numbers() {
    return [...this.blocks.entries()].sort(([left], [right]) => left - right).map(([, block]) => block.numbers);
  }

  /**
   * The number of the block in which a version is reached.
   *
   * @param {number} version
   */
  numberOf(version) {
    return Math.floor((Math.max(version, 1) - 1) / BLOCK);
  }

  /** @param {number} number */
  lastOf(number) {
    return (number + 1) * BLOCK;
  }

  /**
   * A block, as far as it is here.
   *
   * @param {number} number
   */
  async block(number) {
    let block = this.blocks.get(number);
    if (block === undefined) {
      const start = Math.max(number * BLOCK, this.earliest);
      block = new Block(start, this.lastOf(number), await this.start(number, start));
    }
    // The last one is the one that was looked at last.
    this.blocks.delete(number);
    this.blocks.set(number, block);
    this.forget();
    return block;
  }

  /**
   * Read the next page of a block.
   *
   * @param {Block} block
   * @param {number} version as far as this one
   */
  async extend(block, version) {
    const page = await this.source.changes(block.reached, version - block.reached);
    if (page.earliest > block.reached) this.beginLater(page.earliest);
    if (page.changes.length === 0) throw new Error(`there is no version ${block.reached + 1}`);
    block.add(page);
  }

  /**
   * @param {number} number
   * @param {number} version where the block begins
   */
  async start(number, version) {
    const before = this.blocks.get(number - 1);
    if (before?.reached === version) return before.newest;
    try {
      return await this.source.document(version);
    } catch (error) {
      if (error instanceof AnswerError && error.status === 410) this.beginLater(undefined);
      throw error;
    }
  }

  /**
   * Older changes are gone.
   *
   * @param {number | undefined} earliest the new beginning, if it is known
   * @returns {never}
   */
  beginLater(earliest) {
    this.blocks.clear();
    if (earliest !== undefined) this.earliest = earliest;
    throw new PrunedError();
  }

  forget() {
    let size = 0;
    for (const block of this.blocks.values()) size += block.size;
    for (const [number, block] of this.blocks) {
      if (size <= SIZE_KEPT || this.blocks.size === 1) return;
      size -= block.size;
      this.blocks.delete(number);
    }
  }

  /**
   * @template Result
   * @param {() => Promise<Result>} work
   * @returns {Promise<Result>}
   */
  inTurn(work) {
    const result = this.turn.then(work);
    this.turn = result.catch(() => {});
    return result;
  }
}
