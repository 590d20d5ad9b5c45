"""Measures a voice message's way to its answer, through a Bot API server on loopback.

    .venv/bin/python -m tests.bench.chat

Prints one JSON line: seconds from a question's arrival at the server to the end of the `sendVoice` upload,
with answers of 40 tokens to questions of some 6 s: ten turns of one conversation, then rounds in which four
people ask one after the other, and the same at once, each with nothing said before and a whole answer.
"""

import asyncio
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from june.bench.recordings import Question, load_questions
from tests.program import Program, running, write_settings
from tests.telegram_server import ALICE, Call, TelegramServer

TURNS = 10
PEOPLE = 4
ROUNDS = 5
ANSWER_TOKENS = 40


async def measure() -> dict[str, object]:
    """Measure and print the figures."""
    questions = load_questions()
    async with TelegramServer() as server:
        people = [ALICE + person for person in range(PEOPLE)]
        with tempfile.TemporaryDirectory() as folder:
            file = write_settings(
                Path(folder),
                telegram={"token": server.token, "api_base": server.base_url},
                access={"owners": [f"telegram:{person}" for person in people]},
                llm={"max_tokens": ANSWER_TOKENS, "temperature": 0, "presence_penalty": 0},
            )
            async with running(file) as june:
                await june.logged("june.started")
                alone_s = []
                for turn in range(TURNS):
                    asked_one = ask(server, questions, ALICE, turn)
                    alone_s.append(await answered_s(server, ALICE, asked_one))
                for number in range(len(questions)):
                    await forget(server, [ALICE])
                    await answered_s(server, ALICE, ask(server, questions, ALICE, number))
                whole = tuple(
                    question
                    for question, turn in zip(questions, finished(june)[TURNS:], strict=True)
                    if turn["completion_tokens"] == ANSWER_TOKENS
                )
                one_of_four_s, last_of_four_s = [], []
                for turn in range(ROUNDS):
                    await forget(server, people)
                    for number, person in enumerate(people):
                        asked_one = ask(server, whole, person, turn + number)
                        one_of_four_s.append(await answered_s(server, person, asked_one))
                    await forget(server, people)
                    asked = [
                        (person, ask(server, whole, person, turn + number))
                        for number, person in enumerate(people)
                    ]
                    last_of_four_s.append(max([await answered_s(server, *each) for each in asked]))
                await june.terminate()
                turns = finished(june)
        one_s = statistics.median(alone_s)
        each_s, last_s = statistics.median(one_of_four_s), statistics.median(last_of_four_s)
        return {
            "one_s": round(one_s, 3),
            "first_s": round(alone_s[0], 3),
            "tenth_s": round(alone_s[9], 3),
            "one_of_four_s": round(each_s, 3),
            "last_of_four_s": round(last_s, 3),
            "last_of_four_ratio": round(last_s / each_s, 2),
            "overhead_s": round(one_s - statistics.median(turn["total_s"] for turn in turns[:TURNS]), 3),
            "whole_answers": len(whole),
            "all_s": [round(each, 2) for each in alone_s],
            "all_one_of_four_s": [round(each, 2) for each in one_of_four_s],
            "all_four_s": [round(each, 2) for each in last_of_four_s],
        }


def finished(june: Program) -> list[dict[str, Any]]:
    """Return the events of june's turns."""
    return [event for event in june.events if event["event"] == "turn.finished"]


async def forget(server: TelegramServer, people: list[int]) -> None:
    """Reset the conversation of each person."""
    for person in people:
        asked = server.push("/reset", user=person)

        def is_answer(call: Call, person: int = person, asked: int = asked) -> bool:
            return call.ok and (call.chat, call.reply_to) == (person, asked)

        await server.wait_for(is_answer)


def ask(server: TelegramServer, questions: tuple[Question, ...], person: int, number: int) -> int:
    """Send a voice message and return its id."""
    recording = questions[number % len(questions)].audio
    return server.push_file("voice", recording, user=person, file={"duration": 6})


async def answered_s(server: TelegramServer, person: int, asked: int) -> float:
    """Return the seconds until the voice that answers a message arrived in the sender's chat."""

    def is_answer(call: Call) -> bool:
        return call.ok and call.method == "sendVoice" and (call.chat, call.reply_to) == (person, asked)

    answer = await server.wait_for(is_answer, timeout_s=60)
    return answer.finished_s - server.pushed_s[asked]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure())))
