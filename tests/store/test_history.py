"""History: entries, statistics, what waits and what people used."""

from june.messages import Outbound, Transcript
from june.store import Spent, Store, Waiting
from tests.stored import ANNA, BERT, Clock, claim, inbound, receive, recording, reply, take


async def test_history_is_the_newest_messages_oldest_first(store: Store, clock: Clock) -> None:
    await receive(store, inbound(1), inbound(2, BERT), inbound(3))
    clock.now_s += 10
    await receive(store, inbound(4))
    await store.outbox.add([reply("out")])

    async def seen(*, chat: str = "", since_s: float = 0, limit: int = 100) -> list[str]:
        entries = await store.history.entries(chat=chat, since_s=since_s, limit=limit)
        return [entry.platform_message_id or entry.text for entry in entries]

    assert await seen() == ["1", "2", "3", "4", "out"]
    assert await seen(chat=ANNA) == ["1", "3", "4", "out"]
    assert await seen(chat=ANNA, limit=2) == ["4", "out"]
    assert await seen(since_s=clock.now_s) == ["4", "out"]
    assert await seen(chat=ANNA, since_s=clock.now_s) == ["4", "out"]
    assert await seen(chat="telegram:404") == []


async def test_an_entry_holds_everything_that_is_stored(store: Store) -> None:
    (received,) = await receive(store, recording(1))
    await claim(store)
    await store.inbox.note_transcript(received.id, Transcript("Wie geht's?", "de", 2.0))
    answer_text = Outbound(ANNA, "text", "**Gut**", echo="Wie geht's?", reply_to="1")
    await store.inbox.finish(received.id, [answer_text], outcome="answered", answer="**Gut**")
    question = await store.history.entry(received.id)
    assert question is not None
    assert question.direction == "in"
    assert (question.user, question.role, question.kind) == (ANNA, "owner", "voice")
    assert (question.transcript, question.language, question.duration_s) == ("Wie geht's?", "de", 2.0)
    assert (question.answer, question.outcome, question.has_audio) == ("**Gut**", "answered", True)
    reply_entry = (await store.history.entries())[-1]
    assert reply_entry.direction == "out"
    assert (reply_entry.answers, reply_entry.reply_to) == (received.id, "1")
    assert (reply_entry.echo, reply_entry.text) == ("Wie geht's?", "**Gut**")
    assert (reply_entry.transcript, reply_entry.has_audio) == (None, False)
    assert await store.history.entry(999) is None


async def test_stats_give_counts_and_response_times(store: Store, clock: Clock) -> None:
    assert (await store.history.stats()).response_p50_s is None
    for seconds in range(1, 21):
        (received,) = await receive(store, inbound(seconds))
        await claim(store)
        clock.now_s += seconds
        await store.inbox.finish(received.id, [reply()], outcome="answered")
    (command,) = await receive(store, inbound(98, kind="command"))
    await claim(store)
    clock.now_s += 100
    await store.inbox.finish(command.id, [], outcome="command")
    begin_s = clock.now_s = 5000.0
    await receive(store, inbound(99, kind="command"))
    stats = await store.history.stats()
    assert (stats.response_p50_s, stats.response_p95_s) == (10.0, 19.0)
    counts = {(c.direction, c.platform, c.kind, c.status): c.messages for c in stats.counts}
    assert counts == {
        ("in", "telegram", "command", "NEW"): 1,
        ("in", "telegram", "command", "RESPONDED"): 1,
        ("in", "telegram", "text", "RESPONDED"): 20,
        ("out", "telegram", "text", "NEW"): 20,
    }
    assert [count.messages for count in (await store.history.stats(since_s=begin_s)).counts] == [1]


async def test_waiting_counts_what_is_not_done(store: Store, clock: Clock) -> None:
    await receive(store, inbound(1), inbound(2, BERT))
    clock.now_s += 5
    await receive(store, inbound(3, BERT))
    await claim(store)
    await store.outbox.add([reply("one"), reply("two"), reply("three")])
    await take(store)
    clock.now_s += 2
    assert await store.history.waiting() == Waiting(
        new=2, processing=1, unsent=2, sending=1, oldest_new_s=7.0
    )


async def test_spent_sums_what_a_person_sent_since_a_time(store: Store, clock: Clock) -> None:
    assert await store.history.spent(ANNA, since_s=0) == Spent(0, 0.0)
    await receive(store, recording(1), inbound(2))
    clock.now_s += 60
    (voice, _) = await receive(store, recording(3), recording(3, BERT))
    await receive(store, recording(3))
    assert await store.history.spent(ANNA, since_s=0) == Spent(3, 60.0)
    assert await store.history.spent(ANNA, since_s=clock.now_s) == Spent(1, 30.0)
    await store.inbox.note_transcript(voice.id, Transcript("short", "en", 2.0))  # its length
    assert await store.history.spent(ANNA, since_s=clock.now_s) == Spent(1, 2.0)
