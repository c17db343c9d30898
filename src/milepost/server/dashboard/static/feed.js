// What the pages watch, on the connection of the browser client: one for the whole page, shared with the other tabs of the dashboard.
// Whenever it has to be opened again the server begins with a snapshot, so a break costs nothing but time.

import { follow } from "/client/milepost.js";
import { signIn } from "./api.js";
import { parse } from "./json.js";
import { apply } from "./operations.js";

/**
 * connecting: for the first time. live: what is shown is the present state. reconnecting: what is shown may be old. ended: the
 * server has sent everything there will be. gone: the server knows nothing (any more) of what is watched. refused: the server does not
 * take what it is asked. unreadable: what it sends is beyond this reader, such as a payload of a thousand levels.
 *
 * @typedef {"connecting" | "live" | "reconnecting" | "ended" | "gone" | "refused" | "unreadable"} FeedState
 */

/** Where the sign-in page is shown, the session may be over: it says so here. */
const signedOut = new BroadcastChannel("milepost sign-in");

export class Feed {
  /**
   * @param {object} options
   * @param {() => object} options.watch what is watched, as `POST /api/v1/feed/watch` takes it; asked for whenever a connection is opened
   * @param {(text: string) => any} [options.read] makes a frame of its text
   * @param {(event: string, frame: any) => boolean | void} options.onEvent false: the frame does not fit what is at hand, so a snapshot
   *   is needed
   * @param {(state: FeedState) => void} [options.onState]
   * @param {(message: string) => void} [options.onRefused] why the server does not take what it is asked
   */
  constructor({ watch, read = parse, onEvent, onState = () => {}, onRefused = () => {} }) {
    this.watch = watch;
    this.read = read;
    this.onEvent = onEvent;
    this.onState = onState;
    this.onRefused = onRefused;
    /** @type {FeedState} */
    this.state = "connecting";
    this.isOver = false;
    this.unfollow = () => {};
    this.listening = new AbortController();
    const { signal } = this.listening;
    document.addEventListener("visibilitychange", () => this.wake(), { signal });
    window.addEventListener("online", () => this.wake(), { signal });
    signedOut.addEventListener("message", () => this.begin(), { signal });
    onState(this.state);
    this.begin();
  }

  /** Close it for good. */
  stop() {
    this.listening.abort();
    this.unfollow();
  }

  /** Seen again, or online again: what is shown may be old, also after the end. Before that, the connection wakes by itself. */
  wake() {
    if (this.isOver && !document.hidden) this.begin();
  }

  /** Watch it, anew if it is watched: then the server looks again whether there is a session. */
  begin() {
    const before = this.unfollow;
    this.isOver = false;
    this.unfollow = follow(
      this.watch,
      {
        onConnection: (state) => {
          if (state === "live") this.enter("live");
          else if ((state === "reconnecting" || state === "unreachable") && this.state !== "connecting") this.enter("reconnecting");
        },
        onError: (error) => this.refuse(error),
        onEnd: () => this.finish("ended"),
      },
      (event, text) => this.receive(event, text),
    );
    before();
  }

  /**
   * @param {string} event
   * @param {string} text
   * @returns {boolean | void}
   */
  receive(event, text) {
    if (event === "end") return;
    let frame;
    try {
      frame = this.read(text);
    } catch {
      this.unfollow();
      return this.finish("unreadable");
    }
    return this.onEvent(event, frame);
  }

  /** @param {import("/client/milepost.js").MilepostError} error */
  refuse({ status, message }) {
    if (status === 401) return signIn();
    if (status === 404) return this.finish("gone");
    if (status !== 400 && status !== 422) return this.finish("unreadable");
    this.onRefused(message);
    this.finish("refused");
  }

  /** @param {FeedState} state */
  finish(state) {
    this.isOver = true;
    this.enter(state);
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
