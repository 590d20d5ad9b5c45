"""The whole round: june as people run it, a program that speaks HTTP, and Telegram."""

import asyncio
import json
from pathlib import Path
from typing import Any

from june.chat.formatting import visible_telegram
from tests.api_client import read_events, talking_to
from tests.program import Program, running, write_settings
from tests.telegram_server import ALICE, TelegramServer

BERT = 1002
TOKEN = "a-token-of-the-owners"  # noqa: S105 - of this test


def settings(folder: Path, server: TelegramServer, **sections: Any) -> Path:
    return write_settings(
        folder,
        telegram={"token": server.token, "api_base": server.base_url},
        access={"owners": [f"telegram:{ALICE}"], "allowed": [f"telegram:{BERT}"]},
        **sections,
    )


async def port_of(june: Program) -> int:
    return int((await june.logged("api.listening"))["port"])


def says(text: str) -> Any:
    """Whether a call shows this text in a chat."""
    return lambda call: call.ok and call.method == "sendMessage" and visible_telegram(call.text) == text


async def curl(port: int, method: str, path: str, body: Any = None, *options: str) -> tuple[int, Any]:
    """What curl prints: the status, and the JSON."""
    content = ["-H", "Content-Type: application/json", "-d", json.dumps(body)] if body is not None else []
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--show-error", "-X", method, "-w", "\n%{http_code}", *options, *content),
        f"http://127.0.0.1:{port}{path}",
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    text, _, status = output.decode().rpartition("\n")
    return int(status), json.loads(text) if text else None


async def test_curl_does_the_whole_round_while_the_models_are_loading(tmp_path: Path) -> None:
    async with TelegramServer() as server:
        file = settings(tmp_path, server, routes={"owner": "queue"}, api={"port": 0, "token": TOKEN})
        async with running(file) as june:
            port = await port_of(june)
            bearer = ("-H", f"Authorization: Bearer {TOKEN}")
            assert (await curl(port, "GET", "/v1/messages"))[0] == 401
            asked = server.push("What is on today?")
            async with talking_to(port, token=TOKEN) as client:
                ((_, _, arrived),) = await read_events(client, 1, last="0")
                assert arrived["status"] == "NEW"
            status, claimed = await curl(port, "POST", "/v1/messages/claim", {}, *bearer)
            assert (status, claimed["text"], claimed["status"]) == (200, "What is on today?", "PROCESSING")
            path = f"/v1/messages/{claimed['id']}"
            status, responded = await curl(port, "POST", f"{path}/respond", {"text": "**Nothing.**"}, *bearer)
            assert (status, responded["status"]) == (200, "RESPONDED")
            call = await server.wait_for(says("Nothing."))
            assert (call.chat, call.reply_to) == (ALICE, asked)
            assert (await curl(port, "GET", path, None, *bearer))[1] == responded
            assert await june.terminate() == 0
        assert TOKEN not in june.output
        assert "Nothing" not in june.output
