// Requests to june. The token is kept here, in memory, and sent in a header only, never in a URL.

const SILENCE_MS = 45_000; // june sends a comment every 15 s; after three missed ones it is down
const REQUEST_MS = 30_000;
const MAX_PAUSE_MS = 15_000;

let token = "";

export function useToken(text) {
  token = text;
}

export class Refused extends Error {
  // A refused request, with june's own sentence; status 0: june is out of reach.
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function request(method, path, { body, headers = {}, signal } = {}) {
  const options = { method, headers: { ...headers }, cache: "no-store", credentials: "omit", signal };
  if (token) options.headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  try {
    return await fetch(path, options);
  } catch {
    throw new Refused(0, "june is out of reach.");
  }
}

async function refusal(response) {
  const problem = await response.json().catch(() => ({}));
  return new Refused(response.status, problem.detail ?? `june answers with status ${response.status}.`);
}

// Returns june's answer; null: there was nothing to do.
export async function call(method, path, body) {
  const headers = method === "POST" ? { "Idempotency-Key": newKey() } : {};
  const response = await request(method, path, { body, headers, signal: AbortSignal.timeout(REQUEST_MS) });
  if (!response.ok) throw await refusal(response);
  return response.status === 204 ? null : response.json();
}

function newKey() { // crypto.randomUUID is missing on a page that was loaded over plain HTTP
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(16)).join("-");
}

// Returns june's health, for both statuses: 200 (ok) and 503 (failing).
export async function health() {
  const response = await request("GET", "/health", { signal: AbortSignal.timeout(REQUEST_MS) });
  const isHealth = response.headers.get("Content-Type")?.startsWith("application/json");
  if (!isHealth) throw await refusal(response);
  return response.json();
}

export async function recording(id) {
  const response = await request("GET", `/v1/messages/${id}/audio`, { signal: AbortSignal.timeout(REQUEST_MS) });
  if (!response.ok) throw await refusal(response);
  return response.blob();
}

// Follows june's events and reconnects when june is down; returns a function that stops following.
// open(): the stream begins or resumes; message(message); missed(): some events are lost; lost(refused): it broke.
export function follow({ open, message, missed, lost }) {
  const ending = new AbortController();
  let lastId = "";
  let failures = 0;
  let wake = () => {};

  function dispatch(block) {
    const fields = {};
    for (const line of block.split("\n")) {
      const colon = line.indexOf(": ");
      if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
    }
    if (fields.event === "message") message(JSON.parse(fields.data));
    else if (fields.event === "reset") missed();
    else if (fields.id !== undefined) {
      failures = 0;
      open();
    }
    lastId = fields.id ?? lastId;
  }

  async function readOnce() {
    const connection = new AbortController();
    const end = () => connection.abort();
    ending.signal.addEventListener("abort", end, { once: true });
    let watchdog = setTimeout(end, SILENCE_MS);
    try {
      const headers = lastId === "" ? {} : { "Last-Event-ID": lastId };
      const response = await request("GET", "/v1/events", { headers, signal: connection.signal });
      if (!response.ok) throw await refusal(response);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(watchdog);
        watchdog = setTimeout(end, SILENCE_MS);
        text += value;
        const blocks = text.split("\n\n");
        text = blocks.pop();
        blocks.forEach(dispatch);
      }
    } finally {
      clearTimeout(watchdog);
      ending.signal.removeEventListener("abort", end);
      connection.abort();
    }
  }

  async function run() {
    while (!ending.signal.aborted) {
      let refused = new Refused(0, "june is out of reach.");
      try {
        await readOnce();
      } catch (error) {
        if (error instanceof Refused) refused = error;
      }
      if (ending.signal.aborted) return;
      lost(refused);
      failures += 1;
      const pause = Math.min(MAX_PAUSE_MS, 250 * 2 ** failures) * (0.5 + Math.random() / 2);
      await new Promise((resolve) => {
        wake = resolve;
        setTimeout(resolve, pause);
      });
    }
  }

  const hurry = () => document.hidden || wake();
  document.addEventListener("visibilitychange", hurry);
  window.addEventListener("online", hurry);
  run();
  return () => {
    document.removeEventListener("visibilitychange", hurry);
    window.removeEventListener("online", hurry);
    ending.abort();
    wake();
  };
}
