"""The API: a real server on loopback over a real store."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from june.messages import ModelDescription
from june.sections import QueueSettings
from june.telemetry import trace_id
from tests.api_client import BERT, OWNER, STRANGER, Answer, Office, read_events


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with Office(tmp_path) as opened:
        yield opened


def ids(answer: Answer) -> list[int]:
    assert answer.status == 200
    return [message["id"] for message in answer.body["messages"]]


# Reading


async def test_a_message_is_the_same_object_everywhere(office: Office) -> None:
    (arrived,) = await office.arrive("Turn the lights off")
    one = await office.client.get(f"/v1/messages/{arrived.id}")
    listed = await office.client.get("/v1/messages")
    assert one.body == {
        "id": arrived.id,
        "platform": "telegram",
        "chat": OWNER,
        "user": OWNER,
        "user_name": "Someone",
        "role": "owner",
        "direction": "in",
        "kind": "text",
        "text": "Turn the lights off",
        "has_audio": False,
        "status": "NEW",
        "reply_to": None,
        "created_at": "1970-01-01T00:16:40.000Z",
        "updated_at": "1970-01-01T00:16:40.000Z",
        "lease_until": None,
        "expires_at": None,
        "attempts": 0,
        "error": None,
        "trace_id": trace_id(arrived.trace_context),
        "timings_s": None,
    }
    assert listed.body == {"messages": [one.body], "next": None}
    claimed = await office.client.post("/v1/messages/claim", {"lease_s": 60})
    changed = {
        "status": "PROCESSING",
        "attempts": 1,
        "lease_until": "1970-01-01T00:17:40.000Z",
    }
    assert claimed.body == one.body | changed


async def test_pages_follow_one_another_without_gap_or_repetition(office: Office) -> None:
    arrived = [one.id for one in await office.arrive(*"abcdefg")]
    for order, expected in (("desc", arrived[::-1]), ("asc", arrived)):
        seen, cursor = [], ""
        while True:
            page = await office.client.get(f"/v1/messages?limit=3&order={order}{cursor}")
            seen += ids(page)
            if page.body["next"] is None:
                break
            await office.arrive("meanwhile") if order == "desc" else None
            cursor = f"&cursor={page.body['next']}"
        assert seen[: len(expected)] == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("platform=telegram", [1, 2, 3, 4]),
        ("platform=discord", []),
        (f"chat={BERT}", [3]),
        (f"user={OWNER}", [1, 2, 4]),
        ("direction=out", [4]),
        ("kind=clarification", [4]),
        ("kind=text", [1, 2, 3]),
        ("status=PROCESSING", [1]),
        ("status=NEW&direction=in", [2, 3]),
        ("since=1970-01-01T00:16:41Z", [3, 4]),
        ("until=1970-01-01T00:16:41Z", [1, 2]),
        ("since=1970-01-01T01:16:41%2B01:00&kind=text", [3]),
    ],
)
async def test_filters_are_joined_by_and(office: Office, query: str, expected: list[int]) -> None:
    await office.arrive("one", "two")
    office.clock.now_s += 1
    await office.arrive("three", user=BERT)
    await office.client.post("/v1/messages", {"to": "owner", "text": "four", "kind": "clarification"})
    await office.client.post("/v1/messages/claim", {})
    assert ids(await office.client.get(f"/v1/messages?order=asc&{query}")) == expected


async def test_the_text_that_replaced_another_is_shown(office: Office) -> None:
    sent = (await office.client.post("/v1/messages", {"to": "owner", "text": "10 %"})).body
    changed = await office.client.call("PATCH", f"/v1/messages/{sent['id']}", {"op": "append", "text": "!"})
    assert changed.body["text"] == "10 %!"
    assert await office.deliver() == ["10 %!"]  # it was not sent before, so there is nothing to edit
    for op, text in (("prepend", "Now: 10 %!"), ("replace", "Now: ")):
        body = {"op": op, "text": "Now: "}
        changed = await office.client.call("PATCH", f"/v1/messages/{sent['id']}", body)
        assert (changed.status, changed.body["text"]) == (200, text)
    put = await office.client.call("PUT", f"/v1/messages/{sent['id']}", {"text": "100 %"})
    assert put.body == (await office.client.get(f"/v1/messages/{sent['id']}")).body
    assert put.body["text"] == "100 %"
    assert await office.deliver() == ["Now: 10 %!", "Now: ", "100 %"]
    assert len((await office.client.get("/v1/messages")).body["messages"]) == 1


async def test_only_texts_that_were_sent_can_be_changed(office: Office) -> None:
    (arrived,) = await office.arrive("Hello")
    put = await office.client.call("PUT", f"/v1/messages/{arrived.id}", {"text": "Bye"})
    assert (put.status, put.detail) == (409, f"Message {arrived.id} is not a text that june sent.")
    assert (await office.client.call("PUT", "/v1/messages/99", {"text": "Bye"})).status == 404
    sent = (await office.client.post("/v1/messages", {"to": "owner", "text": "a" * 20_000})).body
    longer = await office.client.call("PATCH", f"/v1/messages/{sent['id']}", {"op": "append", "text": "a"})
    assert longer.status == 409


# Claims


async def test_a_message_is_claimed_answered_and_responded(office: Office) -> None:
    (arrived,) = await office.arrive("What is the time?")
    claimed = (await office.client.post("/v1/messages/claim", {})).body
    assert (claimed["id"], claimed["status"]) == (arrived.id, "PROCESSING")
    assert (await office.client.post("/v1/messages/claim", {})).status == 204
    responded = await office.client.post(f"/v1/messages/{arrived.id}/respond", {"text": "Noon."})
    assert (responded.status, responded.body["status"]) == (200, "RESPONDED")
    assert office.wakes == 1
    (answer,) = (await office.client.get("/v1/messages?direction=out")).body["messages"]
    assert (answer["reply_to"], answer["text"], answer["role"]) == (arrived.id, "Noon.", "program")
    assert await office.deliver() == ["Noon."]


async def test_a_spoken_answer_is_two_messages(office: Office) -> None:
    (arrived,) = await office.arrive("Say hello")
    await office.client.post("/v1/messages/claim", {})
    await office.client.post(f"/v1/messages/{arrived.id}/respond", {"text": "Hello.", "voice": True})
    text, voice = (await office.client.get("/v1/messages?direction=out&order=asc")).body["messages"]
    assert (text["kind"], voice["kind"], voice["reply_to"]) == ("message", "voice", text["id"])
    assert await office.deliver() == ["Hello."]  # the voice waits until it is spoken
    unspoken = await office.store.outbox.next_unspoken()
    assert unspoken is not None
    assert (unspoken.id, unspoken.text) == (voice["id"], "Hello.")


async def test_a_lease_that_runs_out_makes_it_new_and_after_so_many_the_owner_is_told(tmp_path: Path) -> None:
    async with Office(tmp_path, queue=QueueSettings(max_attempts=2, lease_s=10)) as office:
        (arrived,) = await office.arrive("A hard one", user=BERT)
        for attempt, status in ((1, "NEW"), (2, "ERROR")):
            claimed = (await office.client.post("/v1/messages/claim", {})).body
            assert claimed["attempts"] == attempt
            extended = await office.client.post(f"/v1/messages/{arrived.id}/extend", {"lease_s": 30})
            office.clock.now_s += 29
            assert await office.expire() == 0
            office.clock.now_s += 1
            assert extended.body["lease_until"] > claimed["lease_until"]
            assert await office.expire() == 1
            late = await office.client.post(f"/v1/messages/{arrived.id}/respond", {"text": "Late"})
            assert late.status == 409
            assert (await office.client.get(f"/v1/messages/{arrived.id}")).body["status"] == status
        told = f"Message {arrived.id} in the queue was given up: programs took it 2 times,"
        assert await office.deliver() == [f"{told} and none came to an end with it."]
        assert list(office.app.chats) == [OWNER]


async def test_whoever_lost_a_claim_changes_nothing_by_its_number(office: Office) -> None:
    (arrived,) = await office.arrive("A slow one")
    await office.client.post("/v1/messages/claim", {})
    office.clock.now_s += 1000
    await office.expire()
    await office.client.post("/v1/messages/claim", {})
    for action in ("extend", "respond", "fail"):
        body = {"attempts": 1} | ({"text": "Mine"} if action == "respond" else {})
        lost = await office.client.post(f"/v1/messages/{arrived.id}/{action}", body)
        assert (lost.status, lost.detail) == (409, f"Message {arrived.id} was claimed again since.")
    kept = await office.client.post(f"/v1/messages/{arrived.id}/respond", {"text": "Mine", "attempts": 2})
    assert kept.status == 200


async def test_what_failed_is_an_error_or_new_again(office: Office) -> None:
    (arrived,) = await office.arrive("A task")
    await office.client.post("/v1/messages/claim", {})
    again = await office.client.post(f"/v1/messages/{arrived.id}/fail", {"retry": True, "error": "no disk"})
    assert (again.body["status"], again.body["error"]) == ("NEW", "no disk")
    await office.client.post("/v1/messages/claim", {})
    failed = await office.client.post(f"/v1/messages/{arrived.id}/fail", {"error": "no disk"})
    assert (failed.body["status"], failed.body["error"]) == ("ERROR", "no disk")


async def test_two_clients_claiming_at_once_never_get_the_same(office: Office) -> None:
    arrived = [one.id for one in await office.arrive(*map(str, range(200)))]

    async def claim_all() -> list[int]:
        claimed = []
        while (answer := await office.client.post("/v1/messages/claim", {})).status == 200:
            claimed.append(answer.body["id"])
        return claimed

    first, second = await asyncio.gather(claim_all(), claim_all())
    assert min(len(first), len(second)) > 10
    assert sorted(first + second) == arrived
    assert first == sorted(first)


async def test_june_does_not_answer_what_waits_for_a_program(office: Office) -> None:
    await office.arrive("For a program")
    assert await office.store.inbox.claim(exclude_chats=(), lease_s=60) is None
    (hers,) = await office.arrive("For june", route="assistant")
    await office.client.post("/v1/messages/claim", {})  # in the same chat: june's turn comes all the same
    assert (await office.client.post("/v1/messages/claim", {})).status == 204
    claimed = await office.store.inbox.claim(exclude_chats=(), lease_s=60)
    assert claimed is not None
    assert claimed.id == hers.id
    assert (await office.client.post(f"/v1/messages/{hers.id}/respond", {"text": "No"})).status == 409


async def test_a_program_keeps_its_claim_while_june_is_started_again(tmp_path: Path) -> None:
    async with Office(tmp_path) as office:
        (arrived,) = await office.arrive("A long one")
        await office.client.post("/v1/messages/claim", {})
    async with Office(tmp_path) as office:
        assert await office.store.upkeep.recover(max_attempts=1, explain=lambda _: None) == 0  # type: ignore[arg-type, return-value]
        responded = await office.client.post(f"/v1/messages/{arrived.id}/respond", {"text": "Done"})
        assert responded.body["status"] == "RESPONDED"


# The state machine


ALLOWED = {
    "queued": {
        ("NEW", "PROCESSING"),
        ("NEW", "RESPONDED"),
        ("NEW", "ERROR"),
        ("PROCESSING", "NEW"),
        ("PROCESSING", "RESPONDED"),
        ("PROCESSING", "ERROR"),
        ("ERROR", "NEW"),
    },
    "sent": {("NEW", "ERROR"), ("ERROR", "NEW")},
}
STATUSES = ("NEW", "PROCESSING", "RESPONDED", "FORWARDED", "SENT", "ERROR", "TIMEOUT")


@pytest.mark.parametrize("nature", ALLOWED)
async def test_a_status_is_set_only_as_the_state_machine_allows(office: Office, nature: str) -> None:
    async def message_in(status: str) -> int | None:
        """Return the id of a message in this status; None: no message can reach it."""
        if nature == "queued":
            message_id = (await office.arrive("Something"))[0].id
        else:
            body = {"to": "owner", "text": "Something"}
            message_id = (await office.client.post("/v1/messages", body)).body["id"]
        path: dict[str, list[str]] = {"NEW": []} | {
            to: [to] for start, to in ALLOWED[nature] if start == "NEW"
        }
        if status not in path:
            return None
        for step in path[status]:
            changed = await change(message_id, "NEW", step)
            assert changed.status == 200
        return message_id

    async def change(message_id: int, if_status: str, status: str) -> Answer:
        body = {"status": status, "if_status": if_status}
        return await office.client.call("PATCH", f"/v1/messages/{message_id}", body)

    for before in STATUSES:
        for after in STATUSES:
            if (message_id := await message_in(before)) is None:
                continue
            wrong = await change(message_id, "SENT" if before != "SENT" else "NEW", after)
            assert (wrong.status, wrong.detail[-9:]) == (409, "not SENT.")
            changed = await change(message_id, before, after)
            now = (await office.client.get(f"/v1/messages/{message_id}")).body["status"]
            is_allowed = (before, after) in ALLOWED[nature]
            assert (changed.status, now) == ((200, after) if is_allowed else (409, before)), (before, after)


async def test_junes_own_messages_are_not_for_programs_to_change(office: Office) -> None:
    (hers,) = await office.arrive("For june", route="assistant")
    for status in ("PROCESSING", "RESPONDED", "ERROR"):
        body = {"status": status, "if_status": "NEW"}
        assert (await office.client.call("PATCH", f"/v1/messages/{hers.id}", body)).status == 409


# Sending and asking


async def test_a_message_reaches_the_owner_or_someone_with_access_and_nobody_else(office: Office) -> None:
    for to, chat in (("owner", OWNER), (BERT, BERT)):
        sent = await office.client.post("/v1/messages", {"to": to, "text": "Hello"})
        assert (sent.status, sent.body["status"], sent.body["chat"]) == (202, "NEW", chat)
    for to in (STRANGER, "telegram:100500"):
        refused = await office.client.post("/v1/messages", {"to": to, "text": "Hello"})
        assert (refused.status, refused.detail) == (403, f"{to} has no access.")
    await office.store.people.set_access(BERT, "denied", name="", added_by=OWNER)
    assert (await office.client.post("/v1/messages", {"to": BERT, "text": "Hello"})).status == 403
    elsewhere = await office.client.post("/v1/messages", {"to": "discord:9", "text": "Hello"})
    assert (elsewhere.status, elsewhere.detail) == (409, "june is not on discord.")
    assert await office.deliver() == ["Hello", "Hello"]
    assert set(office.app.chats) == {OWNER, BERT}


async def ask(office: Office, **body: Any) -> int:
    """Send a question to the owner, deliver it, and return its id."""
    question = {"to": "owner", "text": "Shall I?", "wait_for_reply": True, "kind": "clarification", **body}
    asked = await office.client.post("/v1/messages", question)
    await office.deliver()
    return int(asked.body["id"])


async def test_the_platforms_reply_to_a_question_is_its_answer(office: Office) -> None:
    first, second = await ask(office), await ask(office)
    shown = list(office.app.chats[OWNER])
    (answer,) = await office.arrive("Yes", reply_to=shown[0])
    reply = await office.client.get(f"/v1/messages/{first}/reply")
    assert reply.body["status"] == "RESPONDED"
    assert reply.body["reply"] == (await office.client.get(f"/v1/messages/{answer.id}")).body
    assert (reply.body["reply"]["text"], reply.body["reply"]["reply_to"]) == ("Yes", first)
    assert (await office.client.get(f"/v1/messages/{second}/reply")).body == {"status": "SENT", "reply": None}
    assert await office.store.inbox.claim(exclude_chats=(), lease_s=60) is None  # nor does june answer it


async def test_the_next_message_answers_the_question_asked_last(office: Office) -> None:
    first, second = await ask(office), await ask(office)
    await office.arrive("not an answer", user=BERT)
    await office.arrive("/help", kind="command")
    await office.arrive("/queue a task", kind="command")
    await office.arrive("a reply to something else", reply_to="99")
    await office.arrive("No")
    assert (await office.client.get(f"/v1/messages/{second}/reply")).body["reply"]["text"] == "No"
    await office.arrive("Yes")
    assert (await office.client.get(f"/v1/messages/{first}/reply")).body["reply"]["text"] == "Yes"
    (more,) = await office.arrive("More")
    assert (await office.client.get(f"/v1/messages/{more.id}")).body["status"] == "NEW"


async def test_a_question_that_nobody_saw_is_not_answered(office: Office) -> None:
    body = {"to": "owner", "text": "Shall I?", "wait_for_reply": True}
    question = (await office.client.post("/v1/messages", body)).body["id"]
    (arrived,) = await office.arrive("Hello")
    assert (await office.client.get(f"/v1/messages/{arrived.id}")).body["status"] == "NEW"
    await office.deliver()
    assert (await office.client.get(f"/v1/messages/{question}")).body["status"] == "SENT"


async def test_an_answer_before_the_delivery_is_committed_counts(office: Office) -> None:
    body = {"to": "owner", "text": "Shall I?", "wait_for_reply": True}
    question = (await office.client.post("/v1/messages", body)).body["id"]
    (row,) = await office.store.outbox.take_due(exclude_chats=(), group_window_s=0)
    await office.store.outbox.note_delivered(row.id, await office.app.send_text(OWNER, "Shall I?"))
    await office.arrive("Yes")
    await office.store.outbox.mark_sent([row.id])
    reply = await office.client.get(f"/v1/messages/{question}/reply")
    assert (reply.body["status"], reply.body["reply"]["text"]) == ("RESPONDED", "Yes")


async def test_whoever_waits_for_an_answer_gets_it_when_it_comes(office: Office) -> None:
    question = await ask(office)
    waiting = asyncio.create_task(office.client.get(f"/v1/messages/{question}/reply?wait_s=60"))
    await office.arrive("Yes", user=BERT)
    assert not waiting.done()
    await office.arrive("Yes")
    assert (await waiting).body["reply"]["text"] == "Yes"


async def test_an_unanswered_question_times_out(office: Office) -> None:
    question = await ask(office, expires_in_s=60)
    still = await office.client.get(f"/v1/messages/{question}/reply?wait_s=0.01")
    assert still.body == {"status": "SENT", "reply": None}
    office.clock.now_s += 60
    assert await office.expire() == 1
    assert (await office.client.get(f"/v1/messages/{question}/reply?wait_s=60")).body == {
        "status": "TIMEOUT",
        "reply": None,
    }
    (late,) = await office.arrive("Too late")
    assert (await office.client.get(f"/v1/messages/{late.id}")).body["status"] == "NEW"


async def test_only_questions_have_answers(office: Office) -> None:
    (arrived,) = await office.arrive("Hello")
    no_question = await office.client.get(f"/v1/messages/{arrived.id}/reply?wait_s=60")
    assert (no_question.status, no_question.detail) == (409, f"Message {arrived.id} is not a question.")
    assert (await office.client.get("/v1/messages/99/reply")).status == 404


async def test_a_reply_stands_in_the_same_chat(office: Office) -> None:
    (arrived,) = await office.arrive("Hello")
    body = {"to": "owner", "text": "Hi", "reply_to": arrived.id}
    sent = await office.client.post("/v1/messages", body)
    assert sent.body["reply_to"] == arrived.id
    (row,) = await office.store.outbox.take_due(exclude_chats=(), group_window_s=0)
    assert row.message.reply_to == arrived.message.message_id
    elsewhere = await office.client.post("/v1/messages", body | {"to": BERT})
    assert elsewhere.status == 409


# Idempotency


async def test_a_repeated_post_is_carried_out_once(office: Office) -> None:
    headers = {"Idempotency-Key": "a-1"}
    body = {"to": "owner", "text": "Hello"}
    first = await office.client.post("/v1/messages", body, headers=headers)
    again = await office.client.post("/v1/messages", body, headers=headers)
    assert (first.status, again.status, first.body) == (202, 202, again.body)
    other = await office.client.post("/v1/messages", body | {"text": "Bye"}, headers=headers)
    assert (other.status, other.detail) == (409, "That Idempotency-Key was used for another request.")
    assert await office.deliver() == ["Hello"]
    office.clock.now_s += 24 * 3600
    later = await office.client.post("/v1/messages", body, headers=headers)
    assert later.body["id"] != first.body["id"]


async def test_a_repeated_claim_and_answer_are_carried_out_once(office: Office) -> None:
    first, second = await office.arrive("One", "Two")
    claims = [
        await office.client.post("/v1/messages/claim", {}, headers={"Idempotency-Key": "c"}) for _ in range(2)
    ]
    assert [claim.body["id"] for claim in claims] == [first.id, first.id]
    responses = [
        await office.client.post(
            f"/v1/messages/{first.id}/respond", {"text": "Done"}, headers={"Idempotency-Key": "r"}
        )
        for _ in range(2)
    ]
    assert [response.status for response in responses] == [200, 200]
    assert await office.deliver() == ["Done"]
    over = await office.client.post("/v1/messages/claim", {}, headers={"Idempotency-Key": "c"})
    assert (over.status, over.detail) == (409, f"That claim of message {first.id} is over.")
    assert (await office.client.post("/v1/messages/claim", {})).body["id"] == second.id


# Events


async def test_changes_are_streamed_and_a_stream_goes_on_where_it_ended(office: Office) -> None:
    opened = asyncio.Event()
    (before,) = await office.arrive("Before")
    reading = asyncio.create_task(read_events(office.client, 2, opened=opened))
    await opened.wait()
    (arrived,) = await office.arrive("Hello")
    await office.client.post("/v1/messages/claim", {"id": arrived.id})
    events = await reading
    assert [(event, data["id"]) for _, event, data in events] == [("message", arrived.id)] * 2
    assert events[1][2] == (await office.client.get(f"/v1/messages/{arrived.id}")).body
    resumed = await read_events(office.client, 2, last="0")
    assert [data["id"] for _, _, data in resumed] == [before.id, arrived.id]
    assert (await read_events(office.client, 1, last=events[0][0]))[0][0] == events[1][0]
    ((_, event, data),) = await read_events(office.client, 1, last="999999")  # of another file
    assert (event, data) == ("reset", {})
    assert (await office.client.get("/v1/events", headers={"Last-Event-ID": "-1"})).status == 400


async def test_the_log_of_changes_is_bounded_and_says_what_was_missed(office: Office) -> None:
    await office.arrive("Hello")
    await office.store.transact(
        lambda sql: [
            sql.execute("UPDATE messages SET status = :status", status=str(number))
            for number in range(10_050)
        ]
    )
    changes, is_whole = await office.store.feed.changes(after_id=0, limit=20_000)
    assert (len(changes), is_whole) == (10_000, False)
    assert (await office.store.feed.changes(after_id=changes[0].id - 1, limit=1))[1]


# Monitoring


async def test_health_says_what_works(office: Office) -> None:
    well = await office.client.get("/health")
    assert (well.status, well.body["status"]) == (200, "ok")
    await office.arrive("Hello")
    office.clock.now_s += 5
    office.models = (ModelDescription("tiny", "faster_whisper", "cpu", {}),)
    body = (await office.client.get("/health")).body
    assert body["models"] == [{"name": "tiny", "backend": "faster_whisper", "device": "cpu"}]
    assert body["queue"] == {"new": 1, "processing": 0, "unsent": 0, "sending": 0, "oldest_new_s": 5.0}
    assert body["adapters"] == {"telegram": {"state": "up", "detail": ""}}
    assert body["store"] == "ok"


async def test_health_is_503_when_a_chat_app_is_out_of_reach_or_the_store_fails(office: Office) -> None:
    office.app.state = "down"
    down = await office.client.get("/health")
    assert (down.status, down.body["status"], down.body["adapters"]["telegram"]["state"]) == (
        503,
        "failing",
        "down",
    )
    office.app.state = "up"
    await office.store.transact(lambda sql: sql.execute("ALTER TABLE messages RENAME TO gone"))
    failing = await office.client.get("/health")
    assert (failing.status, failing.body["store"], failing.body["queue"]) == (503, "failing", None)
    refused = await office.client.post("/v1/messages/claim", {})
    assert (refused.status, refused.detail) == (503, "The store does not answer: please try again.")


async def test_ready_is_503_until_all_models_are_warm(office: Office) -> None:
    assert (await office.client.get("/ready")).status == 503
    assert (await office.client.post("/v1/messages", {"to": "owner", "text": "Hello"})).status == 202
    office.is_ready = True
    ready = await office.client.get("/ready")
    assert (ready.status, ready.body) == (200, {"ready": True})


async def test_models_are_not_looked_for_on_the_event_loop(office: Office) -> None:
    assert (await office.client.get("/v1/models")).body["present"] == []
    assert (await office.client.post("/v1/models/switch", {"name": "x.gguf"})).status == 404
    assert office.looking_threads
    assert threading.get_ident() not in office.looking_threads


async def test_metrics_are_prometheus_text(office: Office) -> None:
    metrics = await office.client.get("/metrics")
    assert metrics.headers["Content-Type"].startswith("text/plain")
    assert b"# TYPE june_messages_total counter" in metrics.body


async def test_a_shutdown_ends_streams_and_whoever_waits(tmp_path: Path) -> None:
    async with Office(tmp_path) as office:
        question = await ask(office)
        waiting = asyncio.create_task(office.client.get(f"/v1/messages/{question}/reply?wait_s=60"))
        opened = asyncio.Event()
        streaming = asyncio.create_task(read_events(office.client, 1, opened=opened))
        await opened.wait()
        office.services.closing.set()
        assert (await waiting).body == {"status": "SENT", "reply": None}
        assert await streaming == []
