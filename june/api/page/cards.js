// The elements that show one message. The text of people is only ever set as text and isolated from the text
// around it: its direction and control characters cannot affect the rest of the page.

const STAGES = [
  ["decode", "Decode"],
  ["stt", "Listen"],
  ["llm", "Think"],
  ["tts", "Speak"],
  ["encode", "Encode"],
];
const FIRSTS = { llm: ["llm_first_token", "first word"], tts: ["tts_first_audio", "first sound"] };
const STATUSES = {
  NEW: "waiting",
  PROCESSING: "in work",
  RESPONDED: "answered",
  FORWARDED: "passed on",
  SENT: "sent",
  ERROR: "failed",
  TIMEOUT: "no answer",
};
const KINDS = {
  voice: "voice",
  audio: "recording",
  video_note: "video note",
  command: "command",
  clarification: "question",
  help_request: "asks for help",
  progress: "progress",
  feedback_request: "asks for feedback",
};

const CLOCK = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const DAY = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", year: "numeric" });
const WHOLE = new Intl.DateTimeFormat("en", { dateStyle: "full", timeStyle: "medium", hourCycle: "h23" });

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") made.textContent = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

export function seconds(value) {
  return value < 10 ? `${value.toFixed(2)} s` : `${value.toFixed(1)} s`;
}

export function age(value) {
  if (value < 60) return `${Math.round(value)} s`;
  if (value < 3600) return `${Math.round(value / 60)} min`;
  return value < 172_800 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86_400)} days`;
}

export function when(text) {
  const time = new Date(text);
  const isToday = DAY.format(time) === DAY.format(new Date());
  const shown = isToday ? CLOCK.format(time) : `${DAY.format(time)}, ${CLOCK.format(time)}`;
  return element("time", { datetime: text, title: WHOLE.format(time), text: shown });
}

export function sender(message) {
  if (message.direction === "in") return message.user_name || message.user;
  return message.role === "program" ? "your program" : "june";
}

export function statusPill(message) {
  return element("span", { class: "pill", "data-status": message.status, text: STATUSES[message.status] });
}

export function words(message) {
  return element("p", { class: "words", dir: "auto", text: message.text });
}

function head(message) {
  const line = element("div", { class: "head" });
  line.append(element("bdi", { class: "who", text: sender(message) }), when(message.created_at));
  if (KINDS[message.kind]) line.append(element("span", { class: "kind", text: KINDS[message.kind] }));
  return line;
}

function reason(message) {
  return element("p", { class: "problem", dir: "auto", text: message.error ? `Why: ${message.error}` : "" });
}

// Returns the bars of one turn: the seconds that each stage took. Stages overlap, so each bar begins at the left.
export function timings(values) {
  const known = STAGES.filter(([name]) => values[name] !== undefined);
  const total = values.total ?? 0;
  const longest = Math.max(total, ...known.map(([name]) => values[name]), 0.001);
  const list = element("dl", { class: "timings", "aria-label": `Seconds by stage, ${seconds(total)} in all` });
  const share = (value) => `${Math.min(100, (100 * value) / longest).toFixed(2)}%`;
  for (const [name, label] of known) {
    const value = values[name];
    const bar = element("span", { class: `bar ${name}` });
    bar.style.width = share(value); // set through the DOM, since the policy forbids inline styles
    const track = element("dd", { class: "track", "aria-hidden": "true" }, bar);
    const number = element("dd", { class: "number", text: seconds(value) });
    const [first, meaning] = FIRSTS[name] ?? [];
    if (values[first] !== undefined) {
      const mark = element("span", { class: "mark" });
      mark.style.left = share(values[first]);
      track.append(mark);
      number.append(element("span", { class: "first", text: `${meaning} ${seconds(values[first])}` }));
    }
    list.append(element("div", {}, element("dt", { text: label }), track, number));
  }
  list.append(
    element("div", { class: "total" }, element("dt", { text: "Whole turn" }), element("dd", {}),
      element("dd", { class: "number", text: seconds(total) })),
  );
  return list;
}

// Returns a button that fetches a recording and is then replaced by its player.
function player(message, fetchRecording) {
  const place = element("div", { class: "player" });
  const problem = element("p", { class: "problem", role: "alert" });
  const button = element("button", { type: "button", class: "quiet", text: "▶ Listen" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    problem.textContent = "";
    try {
      const address = URL.createObjectURL(await fetchRecording(message.id));
      const audio = element("audio", { controls: true, src: address, "aria-label": `Recording ${message.id}` });
      button.replaceWith(audio);
      audio.focus();
      await audio.play().catch(() => {}); // the browser may require another click on the controls
    } catch (error) {
      problem.textContent = error.message;
      button.disabled = false;
    }
  });
  place.append(button, problem);
  return place;
}

// Returns a message of a conversation; `update` shows its current state.
export function bubble(message, { fetchRecording }) {
  const place = element("li", { class: `bubble ${message.direction}`, "data-id": message.id });
  let listening = null;
  let shown = null;
  place.update = (now, isRepetition) => {
    if (now === shown) return;
    shown = now;
    const body = element("div", { class: "body" });
    if (now.text && !isRepetition) body.append(words(now));
    if (now.has_audio) {
      listening ??= player(now, fetchRecording);
      body.append(listening);
    }
    const line = head(now);
    const isPlain = (now.direction === "in" ? ["RESPONDED"] : ["SENT", "RESPONDED"]).includes(now.status);
    if (!isPlain) line.append(statusPill(now));
    place.replaceChildren(line, body);
    if (now.error) place.append(reason(now));
    if (now.timings_s) place.append(timings(now.timings_s));
  };
  return place;
}

// Returns a message of the queue with the owner's actions; `update` shows its current state.
export function card(message, { fetchRecording, answer, change }) {
  const top = element("div");
  const text = element("div");
  const why = element("div");
  const problem = element("p", { class: "problem", role: "alert" });
  const actions = element("div", { class: "actions" });
  const place = element("li", { class: "card panel", "data-id": message.id }, top, text, why);
  let now = null;
  let listening = null;
  let form = null;

  const attempt = async (work, ...buttons) => {
    problem.textContent = "";
    for (const button of buttons) button.disabled = true;
    try {
      await work();
      return true;
    } catch (error) {
      problem.textContent = error.message;
      return false;
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  };
  const action = (label, kind, work) => {
    const button = element("button", { type: "button", class: kind, text: label });
    button.addEventListener("click", () => work(button));
    return button;
  };
  const setStatus = (status) => (button) => attempt(() => change(now, status), button);

  function close() {
    form?.remove();
    form = null;
    show();
    actions.querySelector("button")?.focus();
  }

  function open() {
    const field = element("textarea", { id: `answer-${now.id}`, rows: "3", dir: "auto", maxlength: "20000" });
    const wasSpoken = now.kind === "voice"; // a spoken message gets a spoken answer by default
    const spoken = element("input", { type: "checkbox", id: `spoken-${now.id}`, checked: wasSpoken });
    const submit = element("button", { type: "submit", class: "main", text: "Send" });
    const cancel = action("Cancel", "quiet", close);
    const label = element("label", { for: field.id }, "Answer to ", element("bdi", { text: sender(now) }));
    form = element("form", { class: "answer" }, label, field,
      element("div", { class: "actions" }, submit, cancel,
        element("label", { class: "check" }, spoken, " Speak it too")));
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (!field.value.trim()) {
        problem.textContent = "There is nothing to send yet.";
        field.focus();
        return;
      }
      if (await attempt(() => answer(now, field.value, spoken.checked), submit, cancel)) close();
    });
    actions.replaceWith(form);
    field.focus();
  }

  function show() {
    if (form) return;
    const canAnswer = now.direction === "in" && now.status === "NEW";
    const buttons = [];
    if (canAnswer) {
      buttons.push(action("Answer", "main", open), action("Mark as done", "quiet", setStatus("RESPONDED")));
    }
    if (now.direction === "in" && ["ERROR", "PROCESSING"].includes(now.status)) {
      buttons.push(action("Put back", "quiet", setStatus("NEW")));
    }
    actions.replaceChildren(...buttons);
    place.append(actions, problem);
  }

  place.isBusy = () => form !== null;
  place.update = (message) => {
    if (now === message) return; // an unchanged card is not redrawn, so that it keeps the focus
    now = message;
    const line = head(now);
    line.append(statusPill(now));
    top.replaceChildren(line);
    text.replaceChildren(words(now));
    if (now.has_audio) text.append((listening ??= player(now, fetchRecording)));
    why.replaceChildren(...(now.error ? [reason(now)] : []));
    show();
  };
  return place;
}
