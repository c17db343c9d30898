// One live connection: server-sent events, opened again whenever it breaks. Each time the server begins with a snapshot, so a break
// costs nothing but time.
//
// A browser opens at most six connections to one server. A tab that nobody looks at therefore gives its own back and catches up
// when it is seen again.

import { AnswerError, get } from "./api.js";
import { parse } from "./json.js";
import { apply } from "./operations.js";

/**
 * connecting: for the first time. live: what is shown is the present state. reconnecting: what is shown may be old. ended: the
 * server has sent everything there will be. gone: the server knows nothing (any more) of what is watched. refused: the server does not
 * take what it is asked. unreadable: what it sends is beyond this reader, such as a payload of a thousand levels.
 *
 * @typedef {"connecting" | "live" | "reconnecting" | "ended" | "gone" | "refused" | "unreadable"} FeedState
 */

const DELAY_MIN = 250;
const DELAY_MAX = 5000;

export class Feed {
  /**
   * @param {object} options
   * @param {string} options.url the event stream
   * @param {string} options.probe what to ask when the stream is refused, to learn why
   * @param {string[]} options.events names of the events; `end` closes the feed for good
   * @param {(event: string, frame: Map<string, any>) => boolean | void} options.onEvent false: the frame does not fit what is
   *   at hand, so a snapshot is needed
   * @param {(state: FeedState) => void} [options.onState]
   * @param {(message: string) => void} [options.onRefused] why the server does not take what it is asked
   */
  constructor({ url, probe, events, onEvent, onState = () => {}, onRefused = () => {} }) {
    this.url = url;
    this.probe = probe;
    this.events = events;
    this.onEvent = onEvent;
    this.onState = onState;
    this.onRefused = onRefused;
    /** @type {FeedState} */
    this.state = "connecting";
    /** @type {EventSource | null} */
    this.source = null;
    this.timer = 0;
    this.delay = DELAY_MIN;
    this.stopped = false;
    this.watchVisibility = () => (document.hidden ? this.disconnect() : this.wake());
    document.addEventListener("visibilitychange", this.watchVisibility);
    window.addEventListener("online", this.watchVisibility);
    onState(this.state);
    this.connect();
  }

  /** Close it for good. */
  stop() {
    this.stopped = true;
    this.disconnect();
    document.removeEventListener("visibilitychange", this.watchVisibility);
    window.removeEventListener("online", this.watchVisibility);
  }

  /** Seen again, or online again: what is shown may be old, also after the end. */
  wake() {
    if (this.source !== null) return;
    this.delay = DELAY_MIN;
    this.connect();
  }

  /** Open it, anew if it is open. What comes next is a snapshot. */
  connect() {
    this.disconnect();
    if (this.stopped || document.hidden) return;
    const source = new EventSource(this.url);
    this.source = source;
    for (const name of this.events) {
      source.addEventListener(name, (event) => this.receive(name, /** @type {MessageEvent} */ (event).data));
    }
    source.addEventListener("end", () => {
      this.disconnect();
      this.enter("ended");
    });
    source.addEventListener("error", () => this.lose(source));
  }

  disconnect() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  /**
   * @param {string} name
   * @param {string} data
   */
  receive(name, data) {
    let frame;
    try {
      frame = /** @type {Map<string, any>} */ (parse(data));
    } catch {
      this.disconnect();
      return this.enter("unreadable");
    }
    if (this.onEvent(name, frame) === false) {
      this.retry();
    } else if (!this.stopped) {
      this.delay = DELAY_MIN;
      this.enter("live");
    }
  }

  /** @param {EventSource} source */
  async lose(source) {
    if (source !== this.source) return;
    // A browser tries again by itself after a break, but gives up for good when it is refused; and it does not tell why.
    const refused = source.readyState === EventSource.CLOSED;
    this.disconnect();
    if (this.state !== "connecting") this.enter("reconnecting");
    if (refused) {
      try {
        await get(this.probe);
      } catch (error) {
        if (error instanceof AnswerError && error.status === 404) return this.enter("gone");
        if (error instanceof AnswerError && (error.status === 400 || error.status === 422)) {
          this.onRefused(error.message);
          return this.enter("refused");
        }
      }
      // It may have been opened again while the answer was on its way.
      if (this.source !== null) return;
    }
    this.retry();
  }

  /** Connect again, later each time in a row. */
  retry() {
    this.disconnect();
    if (this.stopped) return;
    if (this.state !== "connecting") this.enter("reconnecting");
    this.timer = setTimeout(() => this.connect(), this.delay);
    this.delay = Math.min(this.delay * 2, DELAY_MAX);
  }

  /** @param {FeedState} state */
  enter(state) {
    if (state === this.state) return;
    this.state = state;
    this.onState(state);
  }
}

/**
 * A document as a feed tells of it: as a whole first, then by the operations that lead on from a version.
 */
export class FollowedDocument {
  /**
   * @param {import("./json.js").JSONObject} value
   * @param {number} version
   */
  constructor(value, version) {
    this.value = value;
    this.version = version;
  }

  /**
   * Take in a delta.
   *
   * @param {Map<string, any>} delta
   * @returns {boolean} false if it does not continue what is here, so that only the whole document helps
   */
  take(delta) {
    if (!delta.has("fromVersion")) return true;
    if (Number(delta.get("fromVersion")) !== this.version) return false;
    // What had been counted before (`once`) is not among the operations, so no ids need be remembered.
    const applied = apply(this.value, delta.get("operations") ?? []);
    // The server has applied them all, so this copy is not what the server has.
    if (applied.refusals.length > 0) return false;
    this.value = applied.document;
    this.version = Number(delta.get("version"));
    return true;
  }
}

/**
 * The runs of a live list: whole ones first, then what changes of them.
 */
export class FollowedRuns {
  constructor() {
    /** @type {Map<string, Map<string, any>>} */
    this.runs = new Map();
    /** @type {Map<string, FollowedDocument>} */
    this.documents = new Map();
    /** @type {string[]} the ids of the runs, from top to bottom */
    this.order = [];
    /** @type {Map<string, bigint>} how many runs match, by status */
    this.counts = new Map();
  }

  /**
   * Take in an event of the list: a snapshot, or the rows that are new or have changed.
   *
   * @param {string} event
   * @param {Map<string, any>} frame
   * @returns {Map<string, any>[] | null} the runs that are new or have changed; null if the frame does not fit what is here
   */
  take(event, frame) {
    if (event.endsWith("snapshot")) {
      this.runs.clear();
      this.documents.clear();
    }
    this.order = frame.get("order") ?? this.order;
    this.counts = frame.get("counts") ?? this.counts;
    /** @type {Map<string, any>[]} */
    const changed = frame.get("rows") ?? [];
    for (const run of changed) {
      this.runs.set(run.get("id"), run);
      this.documents.set(run.get("id"), new FollowedDocument(run.get("metadata"), Number(run.get("metadataVersion"))));
    }
    for (const delta of frame.get("deltas") ?? []) {
      const run = this.runs.get(delta.get("id"));
      const document = this.documents.get(delta.get("id"));
      if (run === undefined || document === undefined || !document.take(delta)) return null;
      run.set("metadata", document.value);
      run.set("metadataVersion", delta.get("version"));
      for (const [name, value] of delta.get("run") ?? []) {
        if (value === null) run.delete(name);
        else run.set(name, value);
      }
      changed.push(run);
    }
    const shown = new Set(this.order);
    for (const id of this.runs.keys()) {
      if (shown.has(id)) continue;
      this.runs.delete(id);
      this.documents.delete(id);
    }
    return changed;
  }
}
