"""From a voice message's arrival to its answer's, through a Bot API server on loopback.

    .venv/bin/python -m tests.bench_chat

Prints one JSON line: seconds from a question's arrival at the server to the end of the `sendVoice` upload,
for one person at a time and for four at once, with answers of 40 tokens to questions of some 6 s.
"""

import asyncio
import json
import statistics
import tempfile
from pathlib import Path

from june.bench.voice import Question, load_questions
from tests.program import running, write_settings
from tests.telegram_server import ALICE, Call, TelegramServer

TURNS = 10
PEOPLE = 4
ROUNDS = 5


async def measure() -> dict[str, object]:
    """The figures."""
    questions = load_questions()
    async with TelegramServer() as server:
        people = [ALICE + person for person in range(PEOPLE)]
        with tempfile.TemporaryDirectory() as folder:
            file = write_settings(
                Path(folder),
                telegram={"token": server.token, "api_base": server.base_url},
                access={"owners": [f"telegram:{person}" for person in people]},
                llm={"max_tokens": 40},
            )
            async with running(file) as june:
                await june.logged("june.ready")
                alone_s = []
                for turn in range(TURNS):
                    asked_one = ask(server, questions, ALICE, turn)
                    alone_s.append(await answered_s(server, ALICE, asked_one))
                last_of_all_s = []
                for turn in range(ROUNDS):
                    asked = [
                        (person, ask(server, questions, person, turn + number))
                        for number, person in enumerate(people)
                    ]
                    last_of_all_s.append(max([await answered_s(server, *each) for each in asked]))
                await june.terminate()
                turns = [event for event in june.events if event["event"] == "turn.finished"]
        one_s = statistics.median(alone_s)
        return {
            "one_s": round(one_s, 3),
            "first_s": round(alone_s[0], 3),
            "tenth_s": round(alone_s[9], 3),
            "last_of_four_s": round(statistics.median(last_of_all_s), 3),
            "last_of_four_ratio": round(statistics.median(last_of_all_s) / one_s, 2),
            "overhead_s": round(one_s - statistics.median(turn["total_s"] for turn in turns[:TURNS]), 3),
            "tokens": statistics.median(turn["completion_tokens"] for turn in turns),
            "all_s": [round(each, 2) for each in alone_s],
            "all_four_s": [round(each, 2) for each in last_of_all_s],
        }


def ask(server: TelegramServer, questions: tuple[Question, ...], person: int, number: int) -> int:
    """Someone speaks; the message's id."""
    recording = questions[number % len(questions)].audio
    return server.push_file("voice", recording, user=person, file={"duration": 6})


async def answered_s(server: TelegramServer, person: int, asked: int) -> float:
    """Seconds until the voice had arrived that answers the message, in its sender's chat."""

    def is_answer(call: Call) -> bool:
        return call.ok and call.method == "sendVoice" and (call.chat, call.reply_to) == (person, asked)

    answer = await server.wait_for(is_answer, timeout_s=60)
    return answer.finished_s - server.pushed_s[asked]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure())))
