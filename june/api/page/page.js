// The owner's page shows june's current state. It lists the newest messages once; then june's events tell it
// about changes.

import { age, bubble, card, element, sender } from "/page/cards.js";
import { Refused, call, follow, health, recording, useToken } from "/page/connection.js";

const PAGE = 100;
const MOST_MESSAGES = 3000;
const MOST_CARDS = 200;
const HEALTH_MS = 15_000;
const LIST_AGAIN_MS = 5_000;

const TABS = [
  {
    name: "Waiting",
    holds: (message) => message.direction === "in" && message.status === "NEW",
    isOldestFirst: true,
    empty: "Nothing waits. Messages to the queue appear here until you or one of your programs answers them.",
  },
  {
    name: "In work",
    holds: (message) => message.direction === "in" && message.status === "PROCESSING",
    isOldestFirst: true,
    empty: "No message is being worked on.",
  },
  {
    name: "Questions",
    holds: (message) => message.direction === "out" && message.expires_at !== null && message.status === "SENT",
    isOldestFirst: true,
    empty: "Your programs have no open question.",
  },
  {
    name: "Failed",
    holds: (message) => message.status === "ERROR",
    empty: "Nothing failed.",
  },
  {
    name: "Done",
    holds: (message) => message.direction === "in" && message.status === "RESPONDED",
    most: 30,
    empty: "No message has been answered yet.",
  },
];
const LISTS = [
  `limit=${PAGE}`,
  "direction=in&status=NEW&order=asc&limit=200",
  "direction=in&status=PROCESSING&order=asc&limit=200",
  "status=ERROR&limit=50",
  "direction=out&status=SENT&limit=100",
];

const find = (id) => document.getElementById(id);
const messages = new Map();
const claims = new Map(); // what this page has claimed and not answered yet
const earlier = new Map(); // by chat: the cursor of earlier messages; null: there are none
let isWhole = false; // whether the first listing is complete
let shownTab = TABS[0];
let shownChat = "";
let shownMost = PAGE;
let endFollowing = () => {};
let healthTimer = 0;
let listTimer = 0;
let isDrawing = false;

// What june sends

function keep(message, isNews) {
  if (find("desk").hidden) return; // the page was locked while june answered
  const known = messages.get(message.id);
  if (known && (isNews ? known.updated_at > message.updated_at : known.updated_at >= message.updated_at)) return;
  messages.set(message.id, message);
  if (isNews && !known && TABS[0].holds(message)) find("news").textContent = `New message from ${sender(message)}`;
  draw();
}

function forgetOldest() {
  const ids = [...messages.keys()].sort((one, other) => one - other);
  for (const id of ids.slice(0, Math.max(0, ids.length - MOST_MESSAGES))) messages.delete(id);
}

async function list() {
  const pages = await Promise.all(LISTS.map((query) => call("GET", `/v1/messages?${query}`)));
  for (const page of pages) for (const message of page.messages) keep(message, false);
  isWhole = pages[0].next === null;
  forgetOldest();
  draw();
}

async function listEarlier() {
  const oldest = Math.min(...thread().map((message) => message.id));
  const cursor = earlier.get(shownChat) ?? String(oldest);
  const chat = encodeURIComponent(shownChat);
  const page = await call("GET", `/v1/messages?chat=${chat}&limit=${PAGE}&cursor=${cursor}`);
  for (const message of page.messages) keep(message, false);
  earlier.set(shownChat, page.next);
  shownMost += PAGE;
  draw();
}

async function answer(message, text, voice) {
  const claimed = claims.get(message.id) ?? (await call("POST", "/v1/messages/claim", { id: message.id }));
  if (!claimed) throw new Refused(409, "A program has claimed this message, or june is answering it.");
  claims.set(message.id, claimed);
  try {
    const path = `/v1/messages/${message.id}/respond`;
    keep(await call("POST", path, { text, voice, attempts: claimed.attempts }), true);
    claims.delete(message.id);
  } catch (error) {
    if (error.status === 409) claims.delete(message.id); // the claim has ended: the next try claims again
    throw error;
  }
}

async function change(message, status) {
  const body = { status, if_status: message.status };
  keep(await call("PATCH", `/v1/messages/${message.id}`, body), true);
}

// What is shown

const doing = { fetchRecording: recording, answer, change };

function draw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    drawQueue();
    drawConversations();
  });
}

// Makes a container hold one element for each item, in order; elements that exist are kept.
function arrange(container, items, make) {
  const there = new Map([...container.children].map((child) => [child.dataset.id, child]));
  const wanted = items.map((item) => there.get(String(item.id)) ?? make(item));
  for (const child of there.values()) if (!wanted.includes(child)) child.remove();
  wanted.forEach((child, index) => {
    if (container.children[index] !== child) container.insertBefore(child, container.children[index] ?? null);
  });
  return wanted;
}

function drawQueue() {
  const all = [...messages.values()].sort((one, other) => other.id - one.id);
  const counts = new Map(TABS.map((tab) => [tab, all.filter(tab.holds).length]));
  const buttons = arrange(find("statuses"), TABS.map((tab) => ({ id: tab.name, tab })), ({ id, tab }) => {
    const button = element("button", { type: "button", class: "tab", "data-id": id }, element("span", { text: id }));
    button.append(element("span", { class: "count" }));
    button.addEventListener("click", () => {
      shownTab = tab;
      draw();
    });
    return button;
  });
  TABS.forEach((tab, index) => {
    buttons[index].setAttribute("aria-pressed", String(tab === shownTab));
    const isCounted = tab.most === undefined && counts.get(tab) > 0;
    buttons[index].lastChild.textContent = isCounted ? ` ${counts.get(tab)}` : "";
  });

  const container = find("queue");
  const busy = new Set([...container.children].filter((child) => child.isBusy()).map((child) => child.dataset.id));
  let shown = all.filter((message) => shownTab.holds(message) || busy.has(String(message.id)));
  if (shownTab.isOldestFirst) shown.reverse();
  shown = shown.slice(0, shownTab.most ?? MOST_CARDS);
  const cards = arrange(container, shown, (message) => card(message, doing));
  cards.forEach((place, index) => place.update(shown[index]));
  find("queue-empty").textContent = shownTab.empty;
  find("queue-empty").hidden = shown.length > 0;
  const waiting = counts.get(TABS[0]);
  document.title = waiting ? `(${waiting}) june` : "june";
}

function thread() {
  const said = [...messages.values()].filter((message) => message.chat === shownChat);
  return said.sort((one, other) => one.id - other.id).slice(-shownMost);
}

function drawConversations() {
  const chats = new Map();
  for (const message of messages.values()) {
    const chat = chats.get(message.chat) ?? { id: message.chat, last: 0, name: "", nameFrom: 0 };
    chat.last = Math.max(chat.last, message.id);
    if (message.direction === "in" && message.id > chat.nameFrom) {
      chat.nameFrom = message.id;
      chat.name = message.user_name;
    }
    chats.set(message.chat, chat);
  }
  const ordered = [...chats.values()].sort((one, other) => other.last - one.last);
  if (!chats.has(shownChat)) shownChat = ordered[0]?.id ?? "";
  const buttons = arrange(find("chats"), ordered, ({ id }) => {
    const button = element("button", { type: "button", class: "tab", "data-id": id }, element("bdi"));
    button.append(element("span", { class: "count", text: ` ${id.split(":")[0]}` }));
    button.addEventListener("click", () => {
      shownChat = id;
      shownMost = PAGE;
      draw();
    });
    return button;
  });
  ordered.forEach((chat, index) => {
    buttons[index].setAttribute("aria-pressed", String(chat.id === shownChat));
    buttons[index].firstChild.textContent = chat.name || chat.id;
  });

  const said = thread();
  const texts = new Set();
  const container = find("thread");
  const isNew = container.dataset.chat !== shownChat;
  const isAtEnd = container.scrollHeight - container.scrollTop - container.clientHeight < 40;
  container.dataset.chat = shownChat;
  const bubbles = arrange(container, said, (message) => bubble(message, doing));
  bubbles.forEach((place, index) => {
    const message = said[index];
    // An answer that is spoken was written before: its text is shown once.
    place.update(message, message.direction === "out" && message.kind === "voice" && texts.has(message.text));
    if (message.direction === "out") texts.add(message.text);
  });
  if (isNew || isAtEnd) container.scrollTop = container.scrollHeight;
  find("earlier").hidden = said.length === 0 || isWhole || earlier.get(shownChat) === null;
  find("thread-empty").hidden = said.length > 0;
}

function fact(name, value, state = "") {
  const shown = element("dd", { "data-state": state }, element("bdi", { text: value }));
  return element("div", {}, element("dt", {}, element("bdi", { text: name })), shown);
}

const ADAPTER = { up: "connected", down: "out of reach", starting: "connecting" };
const ROLES = ["hears", "thinks", "speaks"];

function drawHealth(found) {
  const apps = Object.entries(found.adapters).map(([name, { state, detail }]) =>
    fact(name, detail ? `${ADAPTER[state]}: ${detail}` : ADAPTER[state], state));
  find("adapters").replaceChildren(...apps);
  const models = found.models.map(({ name, backend, device }, index) =>
    fact(ROLES[index] ?? "model", `${name} · ${backend} on ${device}`));
  find("models").replaceChildren(...(models.length ? models : [fact("models", "loading", "starting")]));
  const numbers = [
    fact("store", found.store === "ok" ? "well" : "does not answer", found.store === "ok" ? "up" : "down"),
    fact("event loop", `${Math.round(found.loop_lag_s * 1000)} ms late`, found.loop_lag_s < 1 ? "up" : "down"),
  ];
  for (const { stage, error, failures, since } of found.failing_stages) {
    const passed = age((Date.now() - new Date(since)) / 1000);
    numbers.push(fact(stage, `fails: ${error}, ${failures} times in ${passed}`, "down"));
  }
  if (found.queue?.new) numbers.push(fact("oldest waiting", age(found.queue.oldest_new_s)));
  if (found.queue?.unsent) numbers.push(fact("to be sent", String(found.queue.unsent)));
  numbers.push(fact("version", found.version));
  find("numbers").replaceChildren(...numbers);
  find("house-problem").hidden = true;
}

async function checkHealth() {
  clearTimeout(healthTimer);
  try {
    if (!document.hidden) {
      const found = await health();
      if (find("desk").hidden) return;
      drawHealth(found);
    }
  } catch (error) {
    if (error.status === 401 || find("desk").hidden) return;
    find("house-problem").textContent = error.message;
    find("house-problem").hidden = false;
  }
  healthTimer = setTimeout(checkHealth, HEALTH_MS);
}

function link(state, text) {
  find("link").dataset.state = state;
  find("link").textContent = text;
}

// Coming and going

async function listAgain() {
  clearTimeout(listTimer);
  try {
    await list();
    link("up", "live");
  } catch (error) {
    if (find("desk").hidden) return;
    link("down", error.message);
    listTimer = setTimeout(listAgain, LIST_AGAIN_MS);
  }
}

function enter(isWithToken) {
  find("door").hidden = true;
  find("desk").hidden = false;
  find("lock").hidden = !isWithToken;
  let isListed = false;
  endFollowing = follow({
    open: () => {
      if (isListed) link("up", "live");
      else listAgain();
      isListed = true;
      checkHealth();
    },
    message: (message) => keep(message, true),
    missed: listAgain,
    lost: (refused) => {
      if (refused.status === 401) lock("june no longer accepts that token.");
      else link("down", refused.status ? refused.message : "june is out of reach; reconnecting");
    },
  });
  draw();
}

function lock(problem = "") {
  endFollowing();
  clearTimeout(healthTimer);
  clearTimeout(listTimer);
  useToken("");
  messages.clear();
  claims.clear();
  earlier.clear();
  shownChat = "";
  for (const id of ["queue", "thread", "chats", "adapters", "models", "numbers"]) find(id).replaceChildren();
  document.title = "june";
  find("news").textContent = "";
  find("desk").hidden = true;
  find("lock").hidden = true;
  find("door").hidden = false;
  find("door-problem").textContent = problem;
  link("locked", "locked");
  find("token").focus();
}

async function unlock(token, refusedText) {
  useToken(token);
  try {
    await health();
    enter(token !== "");
  } catch (error) {
    if (error.status === 401) lock(refusedText);
    else lock(`${error.message} Please try again.`);
  }
}

find("unlock").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.submitter ?? find("unlock").querySelector("button");
  const token = find("token").value.trim();
  button.disabled = true;
  await unlock(token, "june does not accept that token.");
  button.disabled = false;
  if (find("door").hidden) find("token").value = "";
});
find("lock").addEventListener("click", () => lock());
find("earlier").addEventListener("click", async () => {
  find("earlier").disabled = true;
  try {
    await listEarlier();
  } catch (error) {
    link("down", error.message);
  } finally {
    find("earlier").disabled = false;
  }
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !find("desk").hidden) checkHealth();
});

unlock("", "");
