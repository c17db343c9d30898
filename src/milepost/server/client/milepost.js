// Milepost in the browser: watch runs, read their streams, write their metadata, and two elements that show them.
//
//   <script type="module" src="https://milepost.example/client/milepost.js"></script>
//
// All tabs of a site hold one connection to a server, whatever they watch: a browser opens at most six. The types are in milepost.d.ts.

const DELAY_MIN = 250;
const DELAY_MAX = 5000;
/** What is added within so many milliseconds is asked for together. */
const GATHER = 10;
/** A connection that is silent for so long is dead: the server sends something every 10 seconds. */
const SILENCE = 25_000;
/** After so many looks without a word of the tab that leads, another takes its place. */
const LOOKS_MAX = 5;
/** A page that is hidden for so long gives its connection back; sooner where tabs do not share it. */
const HIDDEN = 30_000;
const HIDDEN_ALONE = 1000;
/** A connection that lasted so long was a good one. */
const LASTED = 2000;
const WATCHES_MAX = 1000;
/** A slow reader's stream is left while so many chunks wait. */
const WAITING_MAX = 10_000;
const SEND_TRIES = 6;

export class MilepostError extends Error {
  constructor(message, { status = 0, code = "", field, refused } = {}) {
    super(message);
    this.name = "MilepostError";
    this.status = status;
    this.code = code;
    this.field = field;
    this.refused = refused;
  }
}

function errorOf(problem, status) {
  const message = problem?.details?.message ?? problem?.error ?? `the server answered with status ${status}`;
  return new MilepostError(message, { status, code: problem?.code ?? "", field: problem?.field });
}

function isPassing(status) {
  return status >= 500 || status === 408 || status === 429 || status === 499;
}

// --- paths and operations: the fold of metadata, as the server does it -------------------------------------------

const SEGMENT =
  /\.(?<word>[^.[]*)|\[(?<position>-?[0-9]{1,15})\]|\[(?<double>"(?:[^"\\]|\\.)*")\]|\['(?<single>(?:[^'\\]|\\.)*)'\]/suy;
const POSITION_WORD = /^(?:0|[1-9][0-9]{0,14})$/;
const parsed = new Map();

/** The segments of a key or path: "$.rows[0].done" is one, any other key is a literal name. */
function pathOf(key) {
  let path = parsed.get(key);
  if (path === undefined) {
    path = key.startsWith("$.") || key.startsWith("$[") ? segmentsOf(key) : [key];
    if (path.some((name) => name === "__proto__")) throw new RangeError(`${key} is no key`);
    if (parsed.size >= 1000) parsed.clear();
    parsed.set(key, path);
  }
  return path;
}

function segmentsOf(key) {
  const path = [];
  for (SEGMENT.lastIndex = 1; SEGMENT.lastIndex < key.length; ) {
    const { word, position, double, single } = SEGMENT.exec(key)?.groups ?? {};
    if (position !== undefined) path.push(Number(position));
    else if (word !== undefined) path.push(word);
    else if (double !== undefined) path.push(JSON.parse(double));
    else if (single !== undefined) path.push(JSON.parse(`"${single.replace(/\\.|"/gsu, requoted)}"`));
    else throw new RangeError(`${key} is no path`);
  }
  return path;
}

function requoted(found) {
  return found === "\\'" ? "'" : found === '"' ? '\\"' : found;
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function stepIn(container, segment) {
  if (Array.isArray(container)) {
    if (typeof segment === "string" && !POSITION_WORD.test(segment)) return undefined;
    const position = Number(segment) < 0 ? Number(segment) + container.length : Number(segment);
    return position >= 0 && position < container.length ? position : undefined;
  }
  return isObject(container) && typeof segment === "string" ? segment : undefined;
}

function sum(found, by) {
  if (found !== undefined && typeof found !== "number") throw new RangeError("only a number can be incremented");
  return (found ?? 0) + by;
}

const at = (container, step) => (Object.hasOwn(container, step) ? container[step] : undefined);

function equal(left, right) {
  if (left === right) return true;
  if (Array.isArray(left)) {
    return Array.isArray(right) && left.length === right.length && left.every((item, index) => equal(item, right[index]));
  }
  if (!isObject(left) || !isObject(right)) return false;
  const names = Object.keys(left);
  return (
    names.length === Object.keys(right).length &&
    names.every((name) => Object.hasOwn(right, name) && equal(left[name], right[name]))
  );
}

class Fold {
  constructor(document) {
    this.document = document;
    /** Containers that this fold has made itself, which may be changed in place. */
    this.own = new Set();
  }

  apply({ type, key, value, maxItems }) {
    if (type === "update") {
      this.document = value;
      return;
    }
    const path = pathOf(key);
    const steps = [];
    let found = this.document;
    for (const segment of path) {
      const step = stepIn(found, segment);
      if (step === undefined && (type === "delete" || type === "remove")) return;
      if (step === undefined) throw new RangeError(`${key} leads nowhere`);
      steps.push(step);
      found = at(found, step);
      if (found === undefined) break;
    }
    const missing = path.slice(steps.length);
    if (type === "set") this.write(steps, missing, value);
    else if (type === "increment") this.write(steps, missing, sum(found, value));
    else if (type === "append") this.append(steps, missing, found, value, maxItems);
    else if (found === undefined) return;
    else if (type === "delete") this.delete(steps);
    else if (type === "remove") this.remove(steps, found, value);
    else throw new RangeError(`${type} is no operation`);
  }

  append(steps, missing, found, value, maxItems) {
    const items = this.own.has(found) ? found : Array.isArray(found) ? [...found] : found === undefined ? [] : [found];
    items.push(value);
    if (typeof maxItems === "number" && items.length > maxItems) items.splice(0, items.length - maxItems);
    if (items === found) return;
    this.own.add(items);
    this.write(steps, missing, items);
  }

  remove(steps, found, unwanted) {
    const kept = found.filter((item) => !equal(item, unwanted));
    if (kept.length === found.length) return;
    this.own.add(kept);
    this.write(steps, [], kept);
  }

  delete(steps) {
    const container = this.enter(steps);
    const last = steps.at(-1);
    if (Array.isArray(container)) container.splice(last, 1);
    else delete container[last];
  }

  write(steps, missing, value) {
    for (const name of missing.toReversed()) {
      value = { [name]: value };
      this.own.add(value);
    }
    this.enter(steps)[steps.at(-1)] = value;
  }

  /** The container of a place, after everything on the way there has become this fold's own. */
  enter(steps) {
    let container = (this.document = this.owned(this.document));
    for (const step of steps.slice(0, -1)) container = container[step] = this.owned(container[step]);
    return container;
  }

  owned(container) {
    if (this.own.has(container)) return container;
    const copy = Array.isArray(container) ? [...container] : { ...container };
    this.own.add(copy);
    return copy;
  }
}

/** The document after operations, which the server has applied already. */
export function applyOperations(document, operations) {
  const fold = new Fold(document);
  for (const operation of operations) fold.apply(operation);
  return fold.document;
}

class FollowedRun {
  constructor(run) {
    this.run = run;
    this.version = run.metadataVersion;
  }

  /** False if only the whole run helps. */
  take({ fromVersion, version, operations = [], run = {} }) {
    let metadata = this.run.metadata;
    if (fromVersion !== undefined) {
      if (fromVersion !== this.version) return false;
      try {
        metadata = applyOperations(metadata, operations);
      } catch {
        return false;
      }
      this.version = version;
    }
    this.run = { ...this.run, ...run, metadata, metadataVersion: this.version };
    for (const name in run) if (run[name] === null) delete this.run[name];
    return true;
  }
}

// --- one connection for the whole page ---------------------------------------------------------------------------

const connections = new Map();

function connectionTo(base) {
  let connection = connections.get(base);
  if (connection === undefined) connections.set(base, (connection = new Connection(base)));
  return connection;
}

function baseOf(baseUrl) {
  const base = new URL(baseUrl ?? new URL("..", import.meta.url), globalThis.location?.href).href;
  if (!base.startsWith("http")) throw new TypeError(`baseUrl has to say where the server is, such as "https://milepost.example", not ${base}`);
  return base.endsWith("/") ? base : `${base}/`;
}

class Connection {
  constructor(base) {
    this.base = base;
    this.watches = new Set();
    /** The attempt whose events come, and a newer one that has not been answered yet. */
    this.current = null;
    this.pending = null;
    this.timer = 0;
    this.dueAt = Infinity;
    this.failures = 0;
    this.lastAt = 0;
    this.answeredAt = 0;
    this.hiddenTimer = 0;
    /** Where this tab and others of its origin share the connection; null where it has one of its own. */
    this.tabs = canShare ? new Tabs(this) : null;
    this.wake = () => {
      clearTimeout(this.hiddenTimer);
      if (globalThis.document?.hidden) {
        this.hiddenTimer = setTimeout(() => this.giveBack(), this.tabs ? HIDDEN : HIDDEN_ALONE);
      } else if (this.watches.size > 0 && (this.isDead || !(this.current || this.pending || this.tabs?.follows))) {
        this.reopen();
      }
    };
    this.lose = () => {
      if (this.current || this.pending) this.failed();
    };
  }

  get isDead() {
    return Date.now() - this.lastAt > SILENCE;
  }

  heard() {
    this.lastAt = Date.now();
    this.looks = 0;
  }

  add(watch) {
    if (this.watches.size === 0) this.listen();
    this.watches.add(watch);
    watch.tell("connecting");
    this.openIn(GATHER);
  }

  remove(watch) {
    if (!this.watches.delete(watch)) return;
    if (this.watches.size === 0) this.close();
    // The server goes on telling of it until then.
    else if (!watch.hasEnded) this.openIn(1000);
  }

  listen() {
    this.listening = new AbortController();
    const { signal } = this.listening;
    const listen = (name, heard, where = globalThis) => where?.addEventListener?.(name, heard, { signal });
    listen("online", this.wake);
    listen("offline", this.lose);
    listen("pageshow", this.wake);
    listen("visibilitychange", this.wake, globalThis.document);
    listen("resume", this.wake, globalThis.document);
    this.guard = setInterval(() => {
      if (this.tabs?.follows) {
        // Counted and not measured: when a machine has slept, nobody has been silent.
        if (++this.looks > LOOKS_MAX) this.tabs.seize();
      } else if (this.isDead && (this.current || this.pending)) this.reopen();
    }, 5000);
    // The page may be opened where nobody looks.
    this.wake();
  }

  close() {
    this.disconnect();
    this.tabs?.leave();
    clearInterval(this.guard);
    clearTimeout(this.hiddenTimer);
    this.failures = 0;
    this.listening.abort();
  }

  disconnect() {
    clearTimeout(this.timer);
    this.dueAt = Infinity;
    const attempts = [this.current, this.pending];
    this.current = this.pending = null;
    for (const attempt of attempts) attempt?.abort();
    // What other tabs still tell is an answer to what was asked before.
    if (this.tabs) this.tabs.request = undefined;
  }

  giveBack() {
    if ([...this.watches].some((watch) => watch.options.whileHidden)) return;
    this.disconnect();
    this.tabs?.leave();
    this.tellAll("reconnecting");
  }

  reopen() {
    this.disconnect();
    this.failures = 0;
    this.tellAll("reconnecting");
    this.openIn(0);
  }

  /** Connect again, later each time in a row. */
  failed(error) {
    this.disconnect();
    if (this.answeredAt > 0 && Date.now() - this.answeredAt > LASTED) this.failures = 0;
    this.answeredAt = 0;
    this.failures += 1;
    const delay = Math.min(DELAY_MIN * 2 ** (this.failures - 1), DELAY_MAX);
    this.tellAll(this.failures < 4 ? "reconnecting" : "unreachable");
    if (this.failures === 4) {
      console.warn(
        `milepost: ${this.base} cannot be reached. If the server is up, MILEPOST_CORS_ORIGINS has to name this page's origin.`,
        error ?? "",
      );
    }
    this.openIn(delay * (0.5 + Math.random()));
  }

  tellAll(state) {
    for (const watch of this.watches) watch.tell(state);
  }

  /** Open it, anew if it is open, in so many milliseconds at the latest. */
  openIn(delay) {
    const dueAt = performance.now() + delay;
    if (dueAt >= this.dueAt) return;
    clearTimeout(this.timer);
    this.dueAt = dueAt;
    this.timer = setTimeout(() => {
      this.dueAt = Infinity;
      this.open();
    }, delay);
  }

  async open() {
    if (this.tabs && !(await this.tabs.leads())) return this.tabs.follow();
    this.pending?.abort();
    const attempt = (this.pending = new AbortController());
    const isNewest = () => this.pending === attempt || this.current === attempt;
    this.heard();
    let watches = [...this.watches].filter((watch) => !watch.isPaused);
    if (watches.length === 0) return this.disconnect();
    let key;
    try {
      await Promise.all(watches.map((watch) => watch.prepare()));
      watches = watches.filter((watch) => this.watches.has(watch));
      if (!isNewest() || watches.length === 0) return;
      key = watches.some((watch) => watch.token === undefined) ? undefined : watches[0].token;
      const response = await fetch(`${this.base}api/v1/feed/watch`, {
        method: "POST",
        headers: headersFor(key),
        body: JSON.stringify(requestFor(watches, key)),
        signal: attempt.signal,
        cache: "no-store",
      });
      if (!response.ok) throw errorOf(await response.json().catch(() => null), response.status);
      if (!isNewest()) return;
      // The new one tells of everything: it begins with whole states, and streams go on at their next chunk.
      this.current?.abort();
      this.current = attempt;
      this.pending = null;
      this.answeredAt = Date.now();
      await readEvents(response.body, (event, data) => this.receive(attempt, watches, event, data), () => {
        this.heard();
        this.tabs?.showLife();
      });
    } catch (error) {
      if (!isNewest()) return;
      if (error instanceof MilepostError && !isPassing(error.status)) return this.refused(watches, key, error);
      return this.failed(error);
    }
    if (!isNewest()) return;
    if (this.pending === null && watches.some((watch) => this.watches.has(watch))) this.failed();
    else if (this.current === attempt) this.current = null;
  }

  /** The request is refused as a whole, because of its credentials or of what it asks. */
  refused(watches, key, error) {
    this.disconnect();
    const isCredential = error.status === 401 || error.status === 403;
    for (const watch of watches) {
      if (this.watches.has(watch) && (!isCredential || watch.token === key)) this.refuse(watch, error);
    }
    if (this.watches.size > 0) this.openIn(0);
  }

  refuse(watch, error) {
    // A token may be over, and the page may have a way to a new one.
    if (watch.renew(error)) this.openIn(0);
    else watch.fail(error);
  }

  receive(attempt, watches, event, data) {
    if (this.current !== attempt) return;
    const [, number, name] = /^(\d+)-(.*)$/.exec(event) ?? [];
    if (this.watches.has(watches[number])) this.deliver(watches[number], name, data);
  }

  deliver(watch, name, data) {
    if (name === "refused") {
      const problem = JSON.parse(data);
      return this.refuse(watch, errorOf(problem, problem.status));
    }
    if (name === "error") return;
    watch.isGood = true;
    watch.tell("live");
    if (watch.receive(name, data) === false) this.failed();
  }
}

const canShare = Boolean(globalThis.document && globalThis.BroadcastChannel && globalThis.navigator?.locks);

/**
 * The tabs of an origin that watch things of one server. The one that has the lock leads: it holds the connection and watches for the
 * others too, each thing with its own token. When it goes, the next one has the lock, and all tell it anew what they watch.
 */
class Tabs {
  constructor(connection) {
    this.connection = connection;
    this.name = `milepost 2 ${connection.base}`;
    this.id = "";
    /** What is watched for other tabs, by tab. */
    this.lent = new Map();
  }

  /** Whether this tab leads. */
  async leads() {
    if (this.id === "") {
      this.id = newId();
      this.leader = undefined;
      this.follows = false;
      this.left = new AbortController();
      this.common = new BroadcastChannel(this.name);
      this.common.onmessage = ({ data }) => this.hear(data);
      this.own = new BroadcastChannel(`${this.name} ${this.id}`);
      this.own.onmessage = ({ data }) => this.told(data);
      // By this lock the leader learns when this tab is no more.
      this.hold(`${this.name} ${this.id}`, {}, () => {});
      this.joined = new Promise((resolve) => {
        this.hold(this.name, { ifAvailable: true }, (lock) => {
          if (lock) this.lead();
          else this.wait();
          resolve();
        });
      });
    }
    const { id } = this;
    await this.joined;
    return id === this.id && !this.follows;
  }

  hold(name, options, got) {
    const { left } = this;
    const turn = (this.turn = {});
    const held = navigator.locks.request(name, options, (lock) => {
      got(lock);
      if (lock) return new Promise((resolve) => left.signal.addEventListener("abort", resolve));
    });
    return held.catch((error) => {
      // Only what was asked for last counts.
      if (left.signal.aborted || turn !== this.turn) return;
      if (error.name === "AbortError") {
        // Another tab took it, because this one gave no sign of life.
        this.drop();
        this.connection.disconnect();
        this.wait();
      } else {
        // No locks here, as in a frame without an origin.
        this.alone();
      }
      this.connection.openIn(0);
    });
  }

  wait() {
    this.follows = true;
    this.leader = undefined;
    this.queue = new AbortController();
    this.hold(this.name, { signal: this.queue.signal }, () => this.succeed());
  }

  /** The leader is silent: take its place. */
  seize() {
    this.connection.heard();
    this.queue.abort();
    this.hold(this.name, { steal: true }, () => this.succeed());
  }

  lead() {
    this.follows = false;
    this.leader = this.id;
    this.common.postMessage({ kind: "lead", from: this.id });
  }

  succeed() {
    this.lead();
    this.connection.openIn(GATHER);
  }

  leave() {
    if (this.id === "") return;
    this.id = "";
    this.follows = false;
    this.left.abort();
    this.queue?.abort();
    this.common.close();
    this.own.close();
    this.drop();
  }

  alone() {
    this.connection.tabs = null;
    this.leave();
  }

  drop() {
    for (const tab of this.lent.keys()) this.takeBack(tab);
  }

  takeBack(tab) {
    const lent = this.lent.get(tab);
    this.lent.delete(tab);
    lent?.channel.close();
    for (const watch of lent?.watches ?? []) this.connection.watches.delete(watch);
    return lent;
  }

  async follow() {
    const { connection, common } = this;
    const watches = [...connection.watches].filter((watch) => !watch.isPaused);
    await Promise.all(watches.map((watch) => watch.prepare()));
    if (!this.follows || common !== this.common) return;
    connection.heard();
    // Whoever answers first leads, as far as this tab can know.
    this.leader = undefined;
    const wanted = watches.filter((watch) => connection.watches.has(watch)).map((watch) => [watch.id, watch.describe(), watch.token]);
    common.postMessage({ kind: "want", from: this.id, wanted, request: (this.request = newId()) });
  }

  hear({ kind, from, wanted, request }) {
    const { connection } = this;
    if (kind === "want") {
      if (this.leader === this.id) this.lend(from, wanted, request);
    } else if (this.follows) {
      if (kind === "alive" && from === (this.leader ?? from)) connection.heard();
      // Another one leads by now.
      else connection.openIn(0);
    }
  }

  lend(tab, wanted, request) {
    const { watches } = this.connection;
    let lent = this.lent.get(tab);
    for (const watch of lent?.watches ?? []) watches.delete(watch);
    if (!lent) {
      this.lent.set(tab, (lent = { channel: new BroadcastChannel(`${this.name} ${tab}`) }));
      navigator.locks.request(`${this.name} ${tab}`, () => this.takeBack(tab) && this.connection.openIn(1000));
    }
    lent.watches = [];
    const tell = (id, event, data) => lent.channel.postMessage({ from: this.id, request, id, event, data });
    if (watches.size + wanted.length > WATCHES_MAX) return tell(0, "full");
    lent.watches = wanted.map((what) => new LentWatch(this.connection, tell, what));
    for (const watch of lent.watches) watches.add(watch);
    this.connection.openIn(GATHER);
  }

  told({ from, request, id, event, data }) {
    const { connection } = this;
    if (!this.follows || request !== this.request || from !== (this.leader ??= from)) return;
    connection.heard();
    const watch = [...connection.watches].find((one) => one.id === id);
    if (event === "full") {
      this.alone();
      connection.openIn(0);
    } else if (event === "state") watch?.tell(data);
    else if (event === "fail") watch && connection.refuse(watch, new MilepostError(data.message, data));
    else if (watch) connection.deliver(watch, event, data);
  }

  showLife() {
    const now = Date.now();
    if (now - (this.shownAt ?? 0) < 5000) return;
    this.shownAt = now;
    this.common.postMessage({ kind: "alive", from: this.id });
  }
}

class LentWatch {
  options = {};

  constructor(connection, tell, [id, described, token]) {
    Object.assign(this, { connection, id, described, token, send: tell });
  }

  async prepare() {}

  describe() {
    return this.described;
  }

  renew() {
    return false;
  }

  tell(state) {
    if (state !== this.state) this.send(this.id, "state", (this.state = state));
  }

  fail({ message, status, code, field }) {
    this.connection.watches.delete(this);
    this.send(this.id, "fail", { message, status, code, field });
  }

  receive(event, data) {
    const { run, stream, start = 0 } = this.described;
    if (stream !== undefined && event !== "end") {
      const { next, records } = JSON.parse(data);
      this.described = { run, stream, start: Math.max(next ?? records.at(-1).seq_num + 1, start) };
    }
    if (event === "end") this.connection.watches.delete(this);
    this.send(this.id, event, data);
  }
}

const headersFor = (token) => ({
  "content-type": "application/json",
  ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
});

function requestFor(watches, key) {
  const tokens = new Map();
  const described = watches.map((watch) => {
    const { token } = watch;
    if (token === undefined || token === key) return watch.describe();
    if (!tokens.has(token)) tokens.set(token, tokens.size);
    return { ...watch.describe(), token: tokens.get(token) };
  });
  return { watches: described, tokens: [...tokens.keys()] };
}

async function readEvents(body, onEvent, onBytes) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = [];
  let name = "message";
  let data = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    onBytes();
    const lines = value.split("\n");
    rest.push(lines[0]);
    if (lines.length === 1) continue;
    lines[0] = rest.join("");
    rest = [lines.pop()];
    for (let line of lines) {
      if (line.endsWith("\r")) line = line.slice(0, -1);
      if (line === "") {
        if (data.length > 0) onEvent(name, data.join("\n"));
        name = "message";
        data = [];
      } else if (line.startsWith("event:")) name = line.slice(6).trim();
      else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
    }
  }
}

// --- what is watched ---------------------------------------------------------------------------------------------

/** `sink` takes what comes of it: `put`, `end`, `fail`. */
class Watch {
  constructor(options, sink) {
    this.options = options;
    this.sink = sink;
    this.connection = connectionTo(baseOf(options.baseUrl));
    this.token = undefined;
    this.isPaused = false;
    this.hasEnded = false;
    this.isGood = false;
    this.state = "";
    this.id = newId();
    this.stop = this.stop.bind(this);
  }

  start() {
    const { signal } = this.options;
    if (signal?.aborted) return this.fail(signal.reason);
    this.onAbort = () => this.fail(signal.reason);
    signal?.addEventListener("abort", this.onAbort);
    this.connection.add(this);
    return this;
  }

  stop() {
    this.options.signal?.removeEventListener("abort", this.onAbort);
    this.connection.remove(this);
  }

  async prepare() {
    if (this.token !== undefined) return;
    const { token } = this.options;
    try {
      this.token = (typeof token === "function" ? await token() : token) || undefined;
    } catch (error) {
      this.fail(error);
    }
  }

  renew(error) {
    const mayHelp = (error.status === 401 || error.status === 403) && typeof this.options.token === "function";
    const isFirst = this.isGood || !this.hasRenewed;
    this.hasRenewed = true;
    this.isGood = false;
    if (mayHelp && isFirst) this.token = undefined;
    return mayHelp && isFirst;
  }

  receive(event, data) {
    return this.take(event, JSON.parse(data));
  }

  tell(state) {
    if (state === this.state || (state === "reconnecting" && this.state === "connecting")) return;
    this.state = state;
    this.options.onConnection?.(state);
  }

  finish(value) {
    this.hasEnded = true;
    this.stop();
    this.tell("ended");
    this.sink.end(value);
  }

  fail(error) {
    this.hasEnded = true;
    this.stop();
    this.tell("refused");
    this.sink.fail(error);
  }
}

class RunWatch extends Watch {
  constructor(runId, options, sink) {
    super(options, sink);
    this.runId = runId;
  }

  describe() {
    return { run: this.runId };
  }

  take(event, frame) {
    if (event === "snapshot") {
      this.followed = new FollowedRun(frame.run);
    } else if (event === "delta") {
      if (!this.followed.take(frame)) return false;
    } else {
      if (event === "end") this.finish(this.followed.run);
      return true;
    }
    this.sink.put(this.followed.run);
    return true;
  }
}

class TagWatch extends Watch {
  constructor(tag, options, sink) {
    super(options, sink);
    this.tag = tag;
    /** The runs whose documents are followed, and what was told of every run last. */
    this.runs = new Map();
    this.told = new Map();
  }

  describe() {
    return { tag: this.tag, period: this.options.period };
  }

  take(event, frame) {
    if (event === "begin") {
      this.runs.clear();
    } else if (event === "run") {
      this.put(new FollowedRun(frame.run), frame.matches !== false);
    } else if (event === "delta") {
      const followed = this.runs.get(frame.id);
      if (followed === undefined || !followed.take(frame)) return false;
      this.put(followed, frame.matches !== false);
    } else if (event === "forget") {
      for (const id of frame.ids) this.runs.delete(id);
    } else if (event === "present") {
      this.options.onPresent?.();
    }
    return true;
  }

  put(followed, matches) {
    const { run } = followed;
    if (matches && !run.isCompleted) this.runs.set(run.id, followed);
    else this.runs.delete(run.id);
    // After a break everything is told again.
    const state = `${run.updatedAt} ${run.status} ${run.metadataVersion}`;
    if (this.told.get(run.id) === state) return;
    this.told.set(run.id, state);
    this.sink.put(run);
  }
}

class StreamWatch extends Watch {
  constructor(runId, key, options, sink) {
    super(options, sink);
    this.runId = runId;
    this.key = key;
    this.next = options.start === "latest" ? null : (options.start ?? 0);
  }

  describe() {
    const place = this.next === null ? { latest: true } : { start: this.next };
    return { run: this.runId, stream: this.key, ...place };
  }

  take(event, frame) {
    if (event === "begin") {
      this.next ??= frame.next;
    } else if (this.isPaused) {
      // Until the connection without it is there.
      return true;
    } else if (event === "batch") {
      for (const record of frame.records) {
        if (record.seq_num < this.next) continue;
        if (record.seq_num > this.next) return false;
        const { data, attempt } = JSON.parse(record.body);
        this.next += 1;
        this.sink.put({ value: decoded(data), index: record.seq_num, at: new Date(record.timestamp), attempt });
        if (this.hasEnded || this.isPaused) return true;
      }
    } else if (event === "end") {
      if (frame.next > this.next) return false;
      this.finish({ state: frame.state, error: frame.error });
    }
    return true;
  }

  pause() {
    if (this.isPaused) return;
    this.isPaused = true;
    this.connection.openIn(0);
  }

  resume() {
    if (!this.isPaused) return;
    this.isPaused = false;
    if (!this.hasEnded) this.connection.openIn(0);
  }
}

class FeedWatch extends Watch {
  constructor(what, options, sink) {
    super(options, sink);
    this.describe = what;
  }

  receive(event, data) {
    const fits = this.sink.put([event, data]);
    if (event === "end" && !this.hasEnded) this.finish();
    return fits;
  }
}

function decoded(data) {
  if (!isObject(data) || typeof data.$bytes !== "string" || Object.keys(data).length !== 1) return data;
  return Uint8Array.from(atob(data.$bytes), (character) => character.charCodeAt(0));
}

class CallbackSink {
  constructor(callback, options) {
    this.callback = callback;
    this.options = options;
  }

  put(item) {
    return this.guarded(() => this.callback(item));
  }

  end(value) {
    this.guarded(() => this.options.onEnd?.(value));
  }

  fail(error) {
    if (this.options.signal?.aborted) return;
    if (this.options.onError) this.guarded(() => this.options.onError(error));
    else reported(error);
  }

  /** What goes wrong in the page's code does not harm the connection. */
  guarded(call) {
    try {
      return call();
    } catch (error) {
      reported(error);
    }
  }
}

function reported(error) {
  if (globalThis.reportError) globalThis.reportError(error);
  else queueMicrotask(() => { throw error; });
}

/** Of one thing only the newest state waits (`nameOf` tells things apart), or everything does. */
class IteratorSink {
  constructor(makeWatch, nameOf, shown) {
    this.nameOf = nameOf;
    this.shown = shown;
    this.items = new Map();
    this.count = 0;
    this.waiting = [];
    this.ending = null;
    this.watch = makeWatch(this);
    this.watch.start();
  }

  put(item) {
    const waiting = this.waiting.shift();
    if (waiting) return waiting.resolve({ done: false, value: this.shown(item) });
    this.items.set(this.nameOf ? this.nameOf(item) : this.count++, item);
    if (this.items.size >= WAITING_MAX && !this.nameOf) this.watch.pause();
  }

  end() {
    this.close({ done: true, value: undefined });
  }

  fail(error) {
    this.close(error, true);
  }

  close(result, isError = false) {
    this.ending ??= { result, isError };
    for (const waiting of this.waiting.splice(0)) this.settle(waiting);
  }

  settle({ resolve, reject }) {
    const { result, isError } = this.ending;
    // It is thrown once, then the iteration is over.
    if (isError) this.ending = { result: { done: true, value: undefined }, isError: false };
    (isError ? reject : resolve)(result);
  }

  next() {
    return new Promise((resolve, reject) => {
      const [first] = this.items;
      if (first !== undefined) {
        this.items.delete(first[0]);
        if (this.items.size < WAITING_MAX / 2 && this.watch.isPaused) this.watch.resume();
        resolve({ done: false, value: this.shown(first[1]) });
      } else if (this.ending) {
        this.settle({ resolve, reject });
      } else {
        this.waiting.push({ resolve, reject });
      }
    });
  }

  async return(value) {
    this.watch.stop();
    this.items.clear();
    this.end();
    return { done: true, value };
  }
}

function watched(makeWatch, options, callback, { nameOf, shown = (item) => item }) {
  if (callback !== undefined) {
    const watch = makeWatch(new CallbackSink(callback, options));
    watch.start();
    return watch.stop;
  }
  return { [Symbol.asyncIterator]: () => new IteratorSink(makeWatch, nameOf, shown) };
}

function checkName(name, what) {
  if (typeof name !== "string" || name === "") throw new TypeError(`${what} is a text that is not empty, not ${JSON.stringify(name)}`);
}

export function watch(runId, options = {}, callback) {
  checkName(runId, "the id of a run");
  return watched((sink) => new RunWatch(runId, options, sink), options, callback, { nameOf: () => "run" });
}

export function watchTag(tag, options = {}, callback) {
  checkName(tag, "a tag");
  return watched((sink) => new TagWatch(tag, options, sink), options, callback, { nameOf: (run) => run.id });
}

export function stream(runId, key, options = {}, callback) {
  checkName(runId, "the id of a run");
  checkName(key, "the key of a stream");
  const { start = 0 } = options;
  if (start !== "latest" && !(Number.isSafeInteger(start) && start >= 0)) {
    throw new RangeError(`start is the index of a chunk, from 0, or "latest", not ${start}`);
  }
  const called = callback && (({ value, ...about }) => callback(value, about));
  const shown = options.records ? (record) => record : (record) => record.value;
  return watched((sink) => new StreamWatch(runId, key, options, sink), options, called, { shown });
}

export function follow(what, options, callback) {
  return watched((sink) => new FeedWatch(what, options, sink), options, (event) => callback(...event), {});
}

// --- writing metadata --------------------------------------------------------------------------------------------

export function metadata(runId, options = {}) {
  checkName(runId, "the id of a run");
  return new MetadataWriter(runId, options);
}

class MetadataWriter {
  #runId;
  #options;
  #operations = [];
  #sent = Promise.resolve();

  constructor(runId, options) {
    this.#runId = runId;
    this.#options = options;
  }

  set = (key, value) => this.#add({ type: "set", key, value });
  delete = (key) => this.#add({ type: "delete", key });
  append = (key, value) => this.#add({ type: "append", key, value });
  remove = (key, value) => this.#add({ type: "remove", key, value });
  increment = (key, by = 1) => this.#add({ type: "increment", key, value: by });
  decrement = (key, by = 1) => this.increment(key, -by);

  #add(operation) {
    checkName(operation.key, "the key of metadata");
    // As it is now: what the page does to the value later does not count.
    const text = JSON.stringify(operation, (name, value) => {
      const isOdd = value === undefined || (typeof value === "number" && !Number.isFinite(value));
      if (isOdd || typeof value === "function" || typeof value === "symbol") {
        throw new TypeError(`metadata ${operation.key}: ${name} is ${String(value).slice(0, 40)}, which JSON does not have`);
      }
      return value;
    });
    if (this.#operations.push(text) === 1) this.#sent = Promise.resolve().then(() => this.#send());
    return this;
  }

  /** Resolves with the document when what was called last is stored. */
  send() {
    return this.#sent;
  }

  then(resolve, reject) {
    return this.send().then(resolve, reject);
  }

  async #send() {
    const operations = this.#operations;
    this.#operations = [];
    const { token, baseUrl, signal } = this.#options;
    const url = `${baseOf(baseUrl)}api/v1/runs/${encodeURIComponent(this.#runId)}/metadata`;
    const key = (typeof token === "function" ? await token() : token) || undefined;
    // However often it is sent, it is applied once.
    const headers = { ...headersFor(key), "x-trigger-request-idempotency-key": newId() };
    const body = `{"operations":[${operations.join()}]}`;
    for (let tries = 1; ; tries += 1) {
      let failure;
      try {
        const response = await fetch(url, { method: "PUT", headers, body, signal });
        const answer = await response.json().catch(() => null);
        if (response.ok) return stored(answer);
        failure = errorOf(answer, response.status);
        if (!isPassing(response.status)) throw failure;
      } catch (error) {
        if (error === failure || signal?.aborted || error instanceof MilepostError) throw error;
        failure = error;
      }
      if (tries >= SEND_TRIES) throw failure;
      await new Promise((resolve) => setTimeout(resolve, Math.min(DELAY_MIN * 2 ** tries, DELAY_MAX)));
    }
  }
}

function stored({ metadata, refused }) {
  if (!refused?.length) return metadata;
  const [{ message, code, error }] = refused;
  throw new MilepostError(message ?? error ?? "the server has refused an operation", { status: 422, code, refused });
}

function newId() {
  // `randomUUID` is there on secure pages only.
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// --- elements ----------------------------------------------------------------------------------------------------

/** How far something has come: a number, or an object such as {done: 3, total: 10}; null for anything else. */
function progressOf(value, max = 1) {
  if (typeof value === "number" && value >= 0) return { share: value / max, text: "" };
  if (!isObject(value)) return null;
  const { total } = value;
  for (const name of ["done", "processed", "completed"]) {
    const done = value[name];
    if (typeof done !== "number" || done < 0) continue;
    if (typeof total === "number" && total > 0) return { share: done / total, text: `${counted(done)} of ${counted(total)}` };
    if (total === null || total === undefined) return { share: null, text: counted(done) };
  }
  if (typeof value.percent === "number") return { share: value.percent / 100, text: "" };
  return typeof value.progress === "number" ? progressOf(value.progress) : null;
}

function findProgress(document, key, max) {
  if (key) {
    const found = at(document, key) ?? key.split(".").reduce((inner, name) => (isObject(inner) ? at(inner, name) : undefined), document);
    return progressOf(found, max);
  }
  const found = progressOf(document.progress, max) ?? progressOf(document, max);
  if (found) return found;
  for (const member of Object.values(document)) {
    const inner = isObject(member) ? progressOf(member) : null;
    if (inner && inner.share !== null) return inner;
  }
  return null;
}

const counted = (number) => number.toLocaleString(globalThis.document?.documentElement.lang || undefined, { maximumFractionDigits: 2 });
const statusWord = (status) => status.charAt(0) + status.slice(1).toLowerCase().replaceAll("_", " ");

function refusedWords(error) {
  if (error.status === 401) return `This page's token is not valid: ${error.message}`;
  if (error.status === 403) return `This page's token does not show this: ${error.message}`;
  if (error.status === 404) return `Not found: ${error.message}`;
  return `Cannot be shown: ${error.message}`;
}

const CONNECTION_WORDS = {
  connecting: "Connecting …",
  reconnecting: "Connection lost. Connecting again …",
  unreachable: "The server cannot be reached. Trying again …",
};

function part(name, attributes = {}) {
  const made = document.createElement("div");
  made.setAttribute("part", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  return made;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = text === "";
}

function styleSheet(text) {
  // Not a <style> element, which the page's Content Security Policy may forbid.
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(text);
  return sheet;
}

const COMMON_STYLE = `
  :host { display: block; font: var(--milepost-font, inherit); color: var(--milepost-text-color, inherit); }
  :host([hidden]), [hidden] { display: none !important; }
  [part~="error"] { color: var(--milepost-error-color, #b3261e); overflow-wrap: anywhere; }
  [part~="connection"] { font-size: .875em; overflow-wrap: anywhere; }
`;

const PROGRESS_STYLE = `
  [part="head"], [part="foot"] { display: flex; justify-content: space-between; gap: 1em; }
  [part="label"] { font-weight: 600; overflow-wrap: anywhere; }
  [part="value"] { font-variant-numeric: tabular-nums; white-space: nowrap; }
  [part="track"] {
    overflow: hidden; margin: .25em 0; height: var(--milepost-height, .6em); border-radius: var(--milepost-radius, 1em);
    background: var(--milepost-track-color, #d9dde3);
  }
  [part="bar"] {
    height: 100%; width: 0; border-radius: inherit; background: var(--milepost-color, #2358c4); transition: width .2s;
  }
  [part="status"] { overflow-wrap: anywhere; }
  :host([state="completed"]) [part="bar"] { background: var(--milepost-completed-color, var(--milepost-color, #1d7a3e)); }
  :host([state="failed"]) [part="bar"], :host([state="refused"]) [part="bar"] { background: var(--milepost-error-color, #b3261e); }
  :host([indeterminate]) [part="bar"] { width: 30%; animation: milepost-pass 1.6s ease-in-out infinite; }
  @keyframes milepost-pass { from { margin-left: -30%; } to { margin-left: 100%; } }
  @media (prefers-reduced-motion: reduce) { [part="bar"] { transition: none; animation-duration: 8s !important; } }
  @media (forced-colors: active) { [part="track"] { border: 1px solid; } [part="bar"] { background: Highlight !important; forced-color-adjust: none; } }
`;

const STREAM_STYLE = `
  [part="log"] {
    overflow: auto; max-height: var(--milepost-max-height, 20em); padding: var(--milepost-padding, .75em);
    border: 1px solid var(--milepost-border-color, #c3c9d2); border-radius: var(--milepost-radius, .4em);
    background: var(--milepost-background, transparent);
  }
  :host([state="refused"]) [part="log"]:empty { display: none; }
  [part="text"] { white-space: pre-wrap; overflow-wrap: anywhere; }
  [part="line"] { font-family: ui-monospace, monospace; font-size: .875em; white-space: pre-wrap; overflow-wrap: anywhere; }
  [part="status"] { font-size: .875em; }
`;

/** What both elements share: they watch what their attributes say, for as long as they are in a page. */
class MilepostElement extends (globalThis.HTMLElement ?? Object) {
  static observedAttributes = ["run", "token", "base-url", "key", "label", "max", "start"];
  #watched = "";
  #isDue = false;
  #stop = null;
  #makeToken = null;

  connectedCallback() {
    this.#look();
  }

  disconnectedCallback() {
    this.#look();
  }

  attributeChangedCallback() {
    this.#look();
  }

  get token() {
    return this.#makeToken ?? this.getAttribute("token");
  }

  set token(token) {
    this.#makeToken = typeof token === "function" ? token : null;
    if (this.#makeToken) this.#watched = "";
    else if (token) this.setAttribute("token", token);
    else this.removeAttribute("token");
    this.#look();
  }

  /** An element that is only moved goes on. */
  #look() {
    if (this.#isDue) return;
    this.#isDue = true;
    queueMicrotask(() => {
      this.#isDue = false;
      const names = ["run", "token", "base-url", "key", "start"];
      const wanted = this.isConnected ? JSON.stringify(names.map((name) => this.getAttribute(name))) : "";
      if (wanted === this.#watched) return this.isConnected && this.draw();
      this.#watched = wanted;
      this.#stop?.();
      this.#stop = null;
      if (!this.isConnected) return;
      this.state = "connecting";
      this.prepare();
      try {
        this.#stop = this.begin({
          token: this.token || undefined,
          baseUrl: this.getAttribute("base-url") || undefined,
          onConnection: (state) => this.connection(state),
          onError: (error) => this.refuse(error),
          onEnd: (end) => this.end(end),
        });
      } catch (error) {
        this.refuse(error);
      }
    });
  }

  get state() {
    return this.getAttribute("state");
  }

  set state(state) {
    if (this.state !== state) this.setAttribute("state", state);
  }

  connection(state) {
    setText(this.parts.connection, CONNECTION_WORDS[state] ?? "");
  }

  refuse(error) {
    this.state = "refused";
    this.toggleAttribute("indeterminate", false);
    setText(this.parts.connection, "");
    setText(this.parts.error, error instanceof MilepostError ? refusedWords(error) : `Cannot be shown: ${error.message ?? error}`);
    this.tell("error", error);
  }

  tell(name, detail) {
    this.dispatchEvent(new CustomEvent(`milepost-${name}`, { detail, bubbles: true, composed: true }));
  }

  build(style, names, append) {
    if (this.parts) return;
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [(MilepostElement.common ??= styleSheet(COMMON_STYLE)), (this.constructor.sheet ??= styleSheet(style))];
    this.parts = {};
    for (const name in names) this.parts[name] = part(name, names[name]);
    append(root, this.parts);
    for (const name of ["error", "connection", "status"]) setText(this.parts[name], "");
  }
}

class ProgressElement extends MilepostElement {
  prepare() {
    this.build(
      PROGRESS_STYLE,
      {
        head: {}, label: { id: "label" }, value: { "aria-hidden": "true" },
        track: { role: "progressbar", "aria-labelledby": "label", "aria-valuemin": "0", "aria-valuemax": "100" },
        bar: {}, foot: {}, status: { role: "status" }, connection: {}, error: { role: "alert" },
      },
      (root, { head, label, value, track, bar, foot, status, connection, error }) => {
        head.append(label, value);
        track.append(bar);
        foot.append(status);
        root.append(head, track, foot, connection, error);
      },
    );
    setText(this.parts.error, "");
    this.newest = null;
    this.draw();
  }

  begin(options) {
    return watch(this.getAttribute("run"), options, (run) => {
      this.newest = run;
      this.draw();
      this.tell("update", run);
    });
  }

  end(run) {
    this.tell("end", run);
  }

  draw() {
    const { newest: run, parts } = this;
    if (!parts || this.state === "refused") return;
    setText(parts.label, this.getAttribute("label") || this.getAttribute("key") || run?.taskIdentifier || "Progress");
    const max = Number(this.getAttribute("max")) || 1;
    let found = run && findProgress(run.metadata, this.getAttribute("key"), max);
    if (!found && run?.isSuccess) found = { share: 1, text: "" };
    const share = found?.share ?? null;
    const isGoing = !run || !run.isCompleted;
    const percent = share === null ? null : Math.floor(Math.min(share, 1) * 100 + 1e-9);
    const text = [found?.text, percent === null ? "" : `${percent}%`].filter(Boolean).join(" · ");
    setText(parts.value, text);
    this.toggleAttribute("indeterminate", percent === null && isGoing && Boolean(run?.isExecuting || run?.isWaiting));
    parts.bar.style.width = percent === null ? "" : `${Math.min(share, 1) * 100}%`;
    if (percent === null) parts.track.removeAttribute("aria-valuenow");
    else parts.track.setAttribute("aria-valuenow", String(percent));
    if (text) parts.track.setAttribute("aria-valuetext", text);
    else parts.track.removeAttribute("aria-valuetext");
    if (!run) return;
    this.state = run.status.toLowerCase();
    const { status } = run.metadata;
    const own = typeof status === "string" && status !== "" ? status.slice(0, 200) : "";
    // What the task said last is not how it has ended.
    setText(parts.status, own && !run.isFailed ? own : run.isQueued && run.queuedReason ? "Waiting for a worker" : statusWord(run.status));
    setText(parts.error, run.isFailed && run.error ? `${run.error.name ?? "Error"}: ${run.error.message ?? ""}`.slice(0, 500) : "");
  }
}

const TEXT_MAX = 1_000_000;
const LINES_MAX = 2000;
const DRAW = 30;

class StreamElement extends MilepostElement {
  prepare() {
    this.build(
      STREAM_STYLE,
      {
        log: { role: "log", "aria-live": "polite", tabindex: "0" },
        status: { role: "status" }, connection: {}, error: { role: "alert" },
      },
      (root, { log, status, connection, error }) => root.append(log, status, connection, error),
    );
    const { parts } = this;
    setText(parts.error, "");
    setText(parts.status, "");
    // With another token the same stream goes on.
    const shown = JSON.stringify(["run", "key", "base-url", "start"].map((name) => this.getAttribute(name)));
    if (this.shown !== shown) {
      this.shown = shown;
      this.next = null;
      this.waiting = [];
      parts.log.replaceChildren();
      this.text = null;
    }
    this.draw();
  }

  draw() {
    this.parts?.log.setAttribute("aria-label", this.getAttribute("label") || this.getAttribute("key") || "Stream");
  }

  begin(options) {
    const given = this.getAttribute("start");
    const start = this.next ?? (given === "latest" ? given : Number(given ?? 0));
    return stream(this.getAttribute("run"), this.getAttribute("key"), { ...options, start }, (value, { index }) => {
      this.next = index + 1;
      this.state = "live";
      this.waiting.push(value);
      this.drawing ??= setTimeout(() => this.write(), DRAW);
    });
  }

  /** All since the last time at once: a fast stream costs a page no more than eyes can take. */
  write() {
    clearTimeout(this.drawing);
    this.drawing = undefined;
    const { log } = this.parts;
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 8;
    let joined = "";
    const flush = () => {
      if (joined === "") return;
      if (this.text === null) {
        this.text = document.createTextNode("");
        log.append(part("text"));
        log.lastChild.append(this.text);
      }
      this.text.appendData(joined);
      if (this.text.length > TEXT_MAX) this.text.deleteData(0, this.text.length - TEXT_MAX);
      joined = "";
    };
    const waiting = this.waiting.splice(0);
    for (const value of waiting.length > LINES_MAX && typeof waiting.at(-1) !== "string" ? waiting.slice(-LINES_MAX) : waiting) {
      if (typeof value === "string") {
        joined += value;
        continue;
      }
      flush();
      this.text = null;
      const line = part("line");
      line.textContent = value instanceof Uint8Array ? `${counted(value.length)} bytes` : JSON.stringify(value);
      log.append(line);
    }
    flush();
    while (log.childElementCount > LINES_MAX) log.firstElementChild.remove();
    if (follows) log.scrollTop = log.scrollHeight;
    this.tell("update", waiting);
  }

  end(ended) {
    this.write();
    this.state = ended.state;
    setText(this.parts.status, ended.state === "failed" ? "" : this.next === null ? "Nothing was written." : "Ended");
    setText(this.parts.error, ended.state === "failed" ? `The stream has failed: ${ended.error ?? "no reason was given"}` : "");
    this.tell("end", ended);
  }
}

if (globalThis.customElements) {
  for (const [name, made] of [["milepost-progress", ProgressElement], ["milepost-stream", StreamElement]]) {
    if (!customElements.get(name)) customElements.define(name, made);
  }
}
