// One live connection: server-sent events, opened again whenever it breaks. Each time the server begins with a snapshot, so a break
// costs nothing but time.
//
// A browser opens at most six connections to one server. A tab that nobody looks at therefore gives its own back and catches up
// when it is seen again.

import { AnswerError, get } from "./api.js";
import { parse } from "./json.js";

/**
 * connecting: for the first time. live: what is shown is the present state. reconnecting: what is shown may be old. ended: the
 * server has sent everything there will be. gone: the server knows nothing (any more) of what is watched. unreadable: what it sends
 * is beyond this reader, such as a payload of a thousand levels.
 *
 * @typedef {"connecting" | "live" | "reconnecting" | "ended" | "gone" | "unreadable"} FeedState
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
   */
  constructor({ url, probe, events, onEvent, onState = () => {} }) {
    this.url = url;
    this.probe = probe;
    this.events = events;
    this.onEvent = onEvent;
    this.onState = onState;
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
