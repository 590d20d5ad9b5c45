"""The owner's page in a real browser, over a real API."""

import tomllib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import Browser, Locator, Page, ViewportSize, async_playwright, expect
from pydantic import SecretStr

from june.api import page as served
from june.messages import ModelDescription, Outbound, Transcript, Voice
from june.sections import PROJECT_ROOT, ApiSettings
from june.store import Received
from tests.api_client import BERT, OWNER, Office
from tests.program import running, write_settings
from tests.telegram_server import ALICE, TelegramServer

TOKEN = "a-token-of-the-owners"  # noqa: S105 - of this test
WIDE, NARROW = ViewportSize(width=1200, height=900), ViewportSize(width=400, height=800)
MODELS = (
    ModelDescription("whisper-tiny.en", "faster_whisper", "cpu", {}),
    ModelDescription("smollm2-135m-instruct", "llama_cpp", "cpu", {}),
    ModelDescription("en_US-joe-medium", "piper", "cpu", {}),
)
TIMINGS_S = {"decode": 0.01, "stt": 0.2, "llm_first_token": 0.1, "llm": 0.5, "tts": 0.25, "total": 1.0}
RECORDING = PROJECT_ROOT / "june/bench/questions/sleep.ogg"
HOSTILE = (
    "<script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title = 'taken'\"><iframe src='javascript:alert(1)'></iframe>",
    "W" * 10_000,
    "\u202egnirts a si siht \u2066 and \u202b\u202e\u202e\u202e",
    "[a link](javascript:alert(1)) {{7*7}} ${7*7}",
    "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324\u031e\u0349\u035a\u032f\u031e\u0320"
    * 200,
)


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Open Chromium without any requests of its own."""
    expect.set_options(timeout=20_000)
    silent = ("background-networking", "component-update", "sync", "gpu")
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", *(f"--disable-{what}" for what in silent)],
        )
        yield opened
        await opened.close()


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with Office(tmp_path, api=ApiSettings(port=0, token=SecretStr(TOKEN)), models=MODELS) as opened:
        yield opened


@dataclass
class Visit:
    """The page, and its requests and errors."""

    page: Page
    url: str
    requested: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    async def unlock(self, token: str = TOKEN) -> None:
        """Enter the token."""
        await self.page.get_by_label("Token").fill(token)
        await self.page.get_by_role("button", name="Unlock").click()

    async def live(self) -> None:
        """Wait until the page shows all that june knows."""
        await expect(self.page.locator("#link")).to_have_text("live")

    def card(self, text: str) -> Locator:
        """Return the card of the queue that shows a text."""
        return self.page.locator(".card", has_text=text)

    async def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        return int(await self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


@asynccontextmanager
async def visiting(
    browser: Browser,
    port: int,
    *,
    size: ViewportSize = WIDE,
    scheme: Literal["light", "dark"] = "light",
) -> AsyncIterator[Visit]:
    """Open the page; at the end check that it asked only june, leaked no token and broke no rule."""
    context = await browser.new_context(viewport=size, color_scheme=scheme)
    page = await context.new_page()
    page.set_default_timeout(20_000)
    visit = Visit(page, f"http://127.0.0.1:{port}/")
    page.on("request", lambda request: visit.requested.append(request.url))
    page.on("pageerror", lambda error: visit.faults.append(str(error)))
    page.on("dialog", lambda dialog: visit.faults.append(dialog.message))
    page.on("console", lambda said: visit.faults.append(said.text) if "olicy" in said.text else None)
    try:
        await page.goto(visit.url)
        yield visit
    finally:
        await context.close()
    assert visit.faults == []
    assert [url for url in visit.requested if not url.startswith((visit.url, f"blob:{visit.url}"))] == []
    assert [url for url in visit.requested if TOKEN in url] == []


@asynccontextmanager
async def desk(browser: Browser, office: Office, *, size: ViewportSize = WIDE) -> AsyncIterator[Visit]:
    """Open the page as the owner, with the token entered."""
    async with visiting(browser, office.port, size=size) as visit:
        await visit.unlock()
        await visit.live()
        yield visit


async def answered(office: Office, said: str, answer: str) -> Received:
    """Receive a voice message and answer it with text and voice."""
    (received,) = await office.arrive("", kind="voice", route="assistant")
    await office.store.inbox.claim(exclude_chats=(), lease_s=60)
    await office.store.inbox.note_transcript(received.id, Transcript(said, "en", 3.0))
    voice = Voice(RECORDING.read_bytes(), 3.0, b"")
    replies = [
        Outbound(OWNER, "text", answer, reply_to=received.message.message_id),
        Outbound(OWNER, "voice", answer, voice=voice, text_is_sent=True),
    ]
    await office.store.inbox.finish(
        received.id, replies, outcome="answered", answer=answer, timings_s=TIMINGS_S
    )
    return received


async def test_the_page_asks_for_the_token_and_forgets_it_when_it_is_loaded_again(
    browser: Browser, office: Office
) -> None:
    await office.arrive("A secret")
    async with visiting(browser, office.port) as visit:
        await visit.unlock("wrong")
        await expect(visit.page.get_by_role("alert").first).to_have_text("june does not accept that token.")
        assert "A secret" not in await visit.page.content()
        await visit.unlock()
        await expect(visit.card("A secret")).to_be_visible()
        assert await visit.page.get_by_label("Token").input_value() == ""
        kept = await visit.page.evaluate(
            "JSON.stringify([{...localStorage}, {...sessionStorage}]) + document.cookie"
        )
        assert kept == "[{},{}]"
        await visit.page.get_by_role("button", name="Lock").click()
        await expect(visit.page.get_by_label("Token")).to_be_focused()
        assert "A secret" not in await visit.page.content()
        await visit.unlock()
        await visit.live()
        await visit.page.reload()
        await expect(visit.page.get_by_label("Token")).to_be_visible()


async def test_without_a_token_the_page_opens_on_this_machine(browser: Browser, tmp_path: Path) -> None:
    async with Office(tmp_path) as office, visiting(browser, office.port) as visit:
        await visit.live()
        await expect(visit.page.get_by_text("Nothing waits.")).to_be_visible()
        await expect(visit.page.get_by_text("Nothing has been said yet.")).to_be_visible()
        await expect(visit.page.get_by_role("button", name="Lock")).to_be_hidden()


async def test_what_happens_is_shown_at_once(browser: Browser, office: Office) -> None:
    async with desk(browser, office) as visit:
        (arrived,) = await office.arrive("Water the plants")
        await expect(visit.card("Water the plants")).to_contain_text("waiting")
        await expect(visit.page).to_have_title("(1) june")
        await expect(visit.page.locator("#news")).to_have_text("New message from Someone")
        await office.client.post("/v1/messages/claim", {})
        await expect(visit.page.get_by_text("Nothing waits.")).to_be_visible()
        await visit.page.get_by_role("button", name="In work 1").click()
        await expect(visit.card("Water the plants")).to_contain_text("in work")
        await office.client.post(f"/v1/messages/{arrived.id}/fail", {"error": "no water"})
        await visit.page.get_by_role("button", name="Failed 1").click()
        await expect(visit.card("Water the plants")).to_contain_text("Why: no water")
        await visit.card("Water the plants").get_by_role("button", name="Put back").click()
        await visit.page.get_by_role("button", name="Waiting 1").click()
        await visit.card("Water the plants").get_by_role("button", name="Mark as done").click()
        await expect(visit.page).to_have_title("june")
        done = await office.client.get(f"/v1/messages/{arrived.id}")
        assert done.body["status"] == "RESPONDED"


async def test_a_turn_shows_the_seconds_of_each_stage_as_bars(browser: Browser, office: Office) -> None:
    async with desk(browser, office) as visit:
        await answered(office, "How long should I sleep?", "Eight hours.")
        turn = visit.page.locator(".bubble.in", has_text="How long should I sleep?")
        timings = turn.get_by_label("Seconds by stage, 1.00 s in all")
        await expect(timings).to_contain_text("Listen0.20 s")
        widths = await timings.locator(".bar").evaluate_all(
            "bars => bars.map(bar => Math.round(100 * bar.offsetWidth / bar.parentElement.offsetWidth))"
        )
        assert widths == pytest.approx([1, 20, 50, 25], abs=1)
        answers = visit.page.locator(".bubble.out")
        await expect(answers).to_have_count(2)
        await expect(answers.get_by_text("Eight hours.")).to_have_count(
            1
        )  # what is spoken too stands there once


async def test_a_recording_is_played(browser: Browser, office: Office) -> None:
    await answered(office, "How long should I sleep?", "Eight hours.")
    async with desk(browser, office) as visit:
        await visit.page.get_by_role("button", name="Listen").click()
        player = visit.page.locator("audio")
        await expect(player).to_be_visible()
        # wait_for_function polls with eval, which the page's own policy forbids.
        seconds = await player.evaluate(
            "audio => audio.duration || new Promise(resolve => {"
            " audio.onloadedmetadata = () => resolve(audio.duration) })"
        )
        assert seconds > 1
        assert (await player.get_attribute("src") or "").startswith("blob:")


@pytest.mark.parametrize("kind", ["voice", "text"])
async def test_an_answer_is_spoken_as_the_message_was(
    browser: Browser, office: Office, kind: Literal["voice", "text"]
) -> None:
    await office.arrive("Good evening", kind=kind)
    async with desk(browser, office) as visit:
        card = visit.card("Good evening")
        await card.get_by_role("button", name="Answer").click()
        assert await card.get_by_label("Speak it too").is_checked() == (kind == "voice")


async def test_apps_and_models_are_shown_as_they_are(browser: Browser, office: Office) -> None:
    office.app.state = "down"
    async with desk(browser, office) as visit:
        health = visit.page.get_by_role("region", name="Health")
        await expect(health).to_contain_text("telegramout of reach")
        for model in MODELS:
            await expect(health).to_contain_text(f"{model.name} · {model.backend} on cpu")


async def test_a_stage_that_fails_is_shown(browser: Browser, office: Office) -> None:
    for _ in range(3):
        office.record.failed("tts", "tts_failed")
    async with desk(browser, office) as visit:
        health = visit.page.get_by_role("region", name="Health")
        await expect(health).to_contain_text("ttsfails: tts_failed, 3 times")


async def test_an_answer_from_the_keyboard_reaches_the_chat(browser: Browser, tmp_path: Path) -> None:
    async with TelegramServer() as server:
        file = write_settings(
            tmp_path,
            telegram={"token": server.token, "api_base": server.base_url},
            access={"owners": [f"telegram:{ALICE}"]},
            routes={"owner": "queue"},
            api={"token": TOKEN},
        )
        async with running(file) as june:
            port = (await june.logged("api.opened"))["port"]
            async with visiting(browser, port) as visit:
                await visit.unlock()
                await visit.live()
                asked = server.push("Is the garage closed?")
                answer = visit.card("Is the garage closed?").get_by_role("button", name="Answer")
                await answer.focus()
                await visit.page.keyboard.press("Enter")
                await expect(visit.page.get_by_label(f"Answer to Person {ALICE}")).to_be_focused()
                await visit.page.keyboard.type("It is <closed>.")
                await visit.page.keyboard.press("Control+Enter")
                call = await server.wait_for(lambda call: call.ok and "&lt;closed&gt;" in call.text)
                assert (call.chat, call.reply_to) == (ALICE, asked)
                await expect(visit.page.get_by_text("Nothing waits.")).to_be_visible()
                await expect(visit.page.locator(".bubble.out", has_text="It is <closed>.")).to_be_visible()


async def test_an_answer_that_a_program_forestalls_is_kept_and_said_so(
    browser: Browser, office: Office
) -> None:
    (arrived,) = await office.arrive("Who is quicker?")
    async with desk(browser, office) as visit:
        card = visit.card("Who is quicker?")
        await card.get_by_role("button", name="Answer").click()
        await card.get_by_role("textbox").fill("I am")
        await office.client.post("/v1/messages/claim", {})
        await expect(card).to_contain_text("in work")
        await card.get_by_role("button", name="Send").click()
        await expect(card.get_by_role("alert")).to_have_text(
            "A program has claimed this message, or june is answering it."
        )
        assert await card.get_by_role("textbox").input_value() == "I am"
        await office.client.post(f"/v1/messages/{arrived.id}/fail", {"retry": True})
        await expect(card).to_contain_text("waiting")
        await card.get_by_role("button", name="Send").click()
        await expect(card).to_have_count(0)
        assert await office.deliver() == ["I am"]


@pytest.mark.parametrize("size", [NARROW, WIDE], ids=["400", "1200"])
async def test_hostile_text_is_shown_as_it_is_and_breaks_nothing(
    browser: Browser, office: Office, size: ViewportSize
) -> None:
    await office.arrive(*HOSTILE, user_name="<b>\u202eEve</b>" + "N" * 500)
    (failed,) = await office.arrive("Failing", user=BERT)
    await office.client.post("/v1/messages/claim", {"id": failed.id})
    await office.client.post(f"/v1/messages/{failed.id}/fail", {"error": "<img src=x>" + "E" * 480})
    async with desk(browser, office, size=size) as visit:
        await expect(visit.page.locator(".card")).to_have_count(len(HOSTILE))
        await visit.page.get_by_role("button", name="Eve").click()
        for place in (".card .words", ".bubble .words"):
            assert await visit.page.locator(place).all_text_contents() == list(HOSTILE)
        await visit.page.get_by_role("button", name="Answer", exact=True).first.click()
        assert await visit.overflow() == 0
        await visit.page.get_by_role("button", name="Failed 1").click()
        await expect(visit.page.locator(".card .problem").first).to_contain_text("Why: <img src=x>EEE")
        assert await visit.overflow() == 0
        assert await visit.page.locator("main :is(script, img, iframe, a, b)").count() == 0
        await expect(visit.page).to_have_title(f"({len(HOSTILE)}) june")


async def test_the_page_comes_back_with_june_and_has_missed_nothing(browser: Browser, tmp_path: Path) -> None:
    token = SecretStr(TOKEN)
    async with AsyncExitStack() as stack:
        async with Office(tmp_path, api=ApiSettings(port=0, token=token)) as office:
            port = office.port
            await office.arrive("before")
            visit = await stack.enter_async_context(visiting(browser, port))
            await visit.unlock()
            await visit.live()
        await expect(visit.page.locator("#link")).to_have_text("june is out of reach; reconnecting")
        async with Office(tmp_path) as office:  # elsewhere
            await office.arrive("in between")
        await stack.enter_async_context(Office(tmp_path, api=ApiSettings(port=port, token=token)))
        await visit.live()
        await expect(visit.card("in between")).to_be_visible()
        await expect(visit.card("before")).to_be_visible()


async def test_a_token_that_was_changed_locks_the_page(browser: Browser, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        async with Office(tmp_path, api=ApiSettings(port=0, token=SecretStr(TOKEN))) as office:
            port = office.port
            visit = await stack.enter_async_context(visiting(browser, port))
            await visit.unlock()
            await visit.live()
        changed = ApiSettings(port=port, token=SecretStr("another"))
        await stack.enter_async_context(Office(tmp_path, api=changed))
        await expect(visit.page.get_by_role("alert").first).to_have_text("june no longer accepts that token.")


async def test_the_pages_files_are_public_and_strict_and_nothing_else_is(office: Office) -> None:
    for path, name in served.FILES.items():
        file = await office.client.get(path, headers={"Authorization": ""})
        assert file.status == 200
        assert file.body == (served.FOLDER / name).read_bytes()
        assert file.headers["X-Content-Type-Options"] == "nosniff"
        assert file.headers["Referrer-Policy"] == "no-referrer"
        policy = file.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in policy
    assert {file.name for file in served.FOLDER.iterdir() if file.is_file()} == {
        *served.FILES.values(),
        "__init__.py",
    }
    for path in ("/page", "/page/", "/page/__init__.py", "/page/../openapi.yaml", "/index.html", "/health"):
        refused = await office.client.get(path, headers={"Authorization": ""})
        assert refused.status == 401


def test_the_pages_files_are_installed_with_june() -> None:
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["june.api.page"]
    for name in served.FILES.values():
        assert any(fnmatch(name, pattern) for pattern in patterns)
