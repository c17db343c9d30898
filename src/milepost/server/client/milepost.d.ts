// The types of milepost.js.

export type JSONValue = null | boolean | number | string | JSONValue[] | { [name: string]: JSONValue };

export interface RunError {
  name: string;
  message: string;
  stackTrace?: string | null;
}

/** A run as the server tells of it. Treat it as read-only: what has not changed is shared with the state before. */
export interface Run<Metadata = { [key: string]: any }, Output = any, Payload = any> {
  id: string;
  status:
    | "PENDING_VERSION"
    | "DELAYED"
    | "QUEUED"
    | "EXECUTING"
    | "WAITING"
    | "COMPLETED"
    | "CANCELED"
    | "FAILED"
    | "CRASHED"
    | "SYSTEM_FAILURE"
    | "EXPIRED"
    | "TIMED_OUT"
    | (string & {});
  taskIdentifier: string;
  isQueued: boolean;
  isExecuting: boolean;
  isWaiting: boolean;
  isCompleted: boolean;
  isSuccess: boolean;
  isFailed: boolean;
  isCancelled: boolean;
  createdAt: string;
  updatedAt: string;
  startedAt?: string;
  finishedAt?: string;
  tags: string[];
  durationMs: number;
  attemptCount: number;
  error?: RunError;
  /** The document. Numbers are JavaScript's: integers beyond 2^53 are the nearest ones. */
  metadata: Metadata;
  metadataVersion: number;
  /** Not of runs that `watchTag` tells of. */
  payload?: Payload;
  output?: Output;
  /** Why nobody can take a queued run at this moment. */
  queuedReason?: string | null;
  childCounts?: { [status: string]: number };
  [field: string]: unknown;
}

/** connecting: for the first time. live: what is shown is the present state. reconnecting, unreachable: it may be old, and goes on by
 * itself. ended: nothing will follow. refused: the server does not show it; the error says why. */
export type ConnectionState = "connecting" | "live" | "reconnecting" | "unreachable" | "ended" | "refused";

/** A public token, or a function that gives one: it is called when a connection needs it, and again when the one before has expired.
 * Without one the browser's session with the server's dashboard counts, on pages of that server only. */
export type Token = string | (() => string | Promise<string>);

export interface Options {
  token?: Token;
  /** The server, such as "https://milepost.example". By default the one that this module was loaded from. */
  baseUrl?: string | URL;
  /** Aborting it ends everything that was begun with it; an iteration then throws the signal's reason. */
  signal?: AbortSignal;
  onConnection?: (state: ConnectionState) => void;
  /** Keep the connection while nobody looks at the page. Otherwise it is given back after 30 seconds, or one second where tabs do not
   * share it, and the page catches up when it is seen again: a browser opens at most six connections to one server. */
  whileHidden?: boolean;
}

export interface CallbackOptions<End = unknown> extends Options {
  /** What cannot be shown, and why: a token that is not valid (`status` 401) or does not show it (403), a run that is not there (404).
   * Without it the error is reported as one that nobody has caught. Lost connections are no errors. */
  onError?: (error: MilepostError) => void;
  onEnd?: (end: End) => void;
}

export type Stop = () => void;

/** What went wrong, as the server says it. */
export class MilepostError extends Error {
  /** The HTTP status; 0 when there was none. */
  status: number;
  code: string;
  field?: string;
  /** The operations on metadata that were not applied. */
  refused?: { run: string; index: number; code: string; message: string }[];
}

/** One run: its present state, then each newer one, until it has finished. A reader that is slow skips states in between, never the
 * last. Throws MilepostError. */
export function watch<R extends Run = Run>(runId: string, options?: Options): AsyncIterable<R>;
export function watch<R extends Run = Run>(runId: string, options: CallbackOptions<R>, callback: (run: R) => void): Stop;

export interface TagOptions {
  /** Only runs that are not older, such as "1d" or "30m". */
  period?: string;
  /** Called when every run that is there now has been told. */
  onPresent?: () => void;
}

/** All runs with a tag: each as it is, newest first, then each newer state of any of them. Never ends by itself. */
export function watchTag<R extends Run = Run>(tag: string, options?: Options & TagOptions): AsyncIterable<R>;
export function watchTag<R extends Run = Run>(tag: string, options: CallbackOptions & TagOptions, callback: (run: R) => void): Stop;

export interface StreamOptions {
  /** The index of the first chunk; "latest": only what is written from now on. */
  start?: number | "latest";
}

export interface StreamEnd {
  state: "ended" | "failed";
  error?: string;
}

export interface ChunkAbout {
  index: number;
  /** When it was stored. */
  at: Date;
  /** The attempt of the run that wrote it. */
  attempt: number;
}

export interface ChunkRecord<T = any> extends ChunkAbout {
  value: T;
}

/** The values of a stream in order, each once, until it has ended. Bytes that are no text are a Uint8Array. It goes on behind the last
 * value after lost connections, restarts of the server and sleep. `onEnd` tells how the stream has ended; that its source has failed is no
 * error here. */
export function stream<T = any>(runId: string, key: string, options: Options & StreamOptions & { records: true }): AsyncIterable<ChunkRecord<T>>;
export function stream<T = any>(runId: string, key: string, options?: Options & StreamOptions): AsyncIterable<T>;
export function stream<T = any>(
  runId: string,
  key: string,
  options: CallbackOptions<StreamEnd> & StreamOptions,
  callback: (value: T, about: ChunkAbout) => void,
): Stop;

/** The events of anything that `POST /api/v1/feed/watch` takes as a watch, on the same connection: for readers with a fold of their own.
 * `what` is called whenever a connection is opened, so it says from where on. `data` is JSON text; each connection begins with a whole
 * state. Return false for an event that does not fit what is at hand: then the connection is opened anew. */
export function follow(
  what: () => object,
  options: CallbackOptions<undefined>,
  callback: (event: string, data: string) => boolean | void,
): Stop;

/** Writes to the metadata of a run. What is called in one go leaves in one request, which is applied once however often it has to be
 * sent. Await it to know that it is stored; it resolves with the document, as far as the token shows it. */
export interface MetadataWriter extends PromiseLike<{ [key: string]: any } | undefined> {
  set(key: string, value: JSONValue): MetadataWriter;
  delete(key: string): MetadataWriter;
  append(key: string, value: JSONValue): MetadataWriter;
  remove(key: string, value: JSONValue): MetadataWriter;
  increment(key: string, by?: number): MetadataWriter;
  decrement(key: string, by?: number): MetadataWriter;
  send(): Promise<{ [key: string]: any } | undefined>;
}

export function metadata(runId: string, options?: Pick<Options, "token" | "baseUrl" | "signal">): MetadataWriter;

export type Operation =
  | { type: "set" | "append" | "remove"; key: string; value: JSONValue; maxItems?: number | null }
  | { type: "delete"; key: string }
  | { type: "increment"; key: string; value: number }
  | { type: "update"; value: { [key: string]: JSONValue } };

/** The document after operations that the server has applied already. */
export function applyOperations<D extends { [key: string]: any }>(document: D, operations: Iterable<Operation>): D;

export interface MilepostElement extends HTMLElement {
  token: Token | null;
}

export interface MilepostEventMap {
  "milepost-update": CustomEvent;
  "milepost-end": CustomEvent;
  "milepost-error": CustomEvent<MilepostError>;
}

declare global {
  interface HTMLElementTagNameMap {
    "milepost-progress": MilepostElement;
    "milepost-stream": MilepostElement;
  }
}
