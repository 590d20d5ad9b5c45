"""What watches june: Grafana's dashboards, Prometheus's alerts, and Prometheus itself."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from aiohttp import ClientSession, web

from deploy.dashboards import FOLDER, PAGES, render
from june.bench.recordings import Question
from june.sections import PROJECT_ROOT
from tests.program import running, write_settings
from tests.telegram_server import ALICE, TelegramServer

PROMETHEUS = PROJECT_ROOT / "deploy" / "prometheus"
GRAFANA = PROJECT_ROOT / "deploy" / "grafana"
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text("utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
CASES = yaml.safe_load((PROMETHEUS / "alerts.test.yaml").read_text("utf-8"))["tests"]


def expressions_of(name: str) -> list[str]:
    """Return a dashboard's queries to Prometheus, with Grafana's variable filled in."""
    panels = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    return [expression.replace("$__rate_interval", "1m") for expression in asked]


ASKED = {name: expressions_of(name) for name in PAGES} | {"alerts": [rule["expr"] for rule in RULES]}
EXPRESSIONS = [expression for asked in ASKED.values() for expression in asked]


def metrics_in(expression: str) -> set[str]:
    """Return the names of the series that an expression reads."""
    names = set()

    def see(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            names.add(node.name or "")

    promql_parser.walk(promql_parser.parse(expression), see)
    return names


def promtool(*arguments: str | Path, stdin: bytes = b"") -> str:
    """Run promtool, check that it succeeds, and return its output."""
    command = [shutil.which("promtool") or "promtool", *arguments]
    done = subprocess.run(command, cwd=PROMETHEUS, input=stdin, capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


@pytest.mark.parametrize("name", PAGES)
def test_a_dashboards_file_is_what_the_script_writes(name: str) -> None:
    written = (FOLDER / f"{name}.json").read_text("utf-8")
    assert written == render(name), "run: python -m deploy.dashboards"


def test_there_is_no_dashboard_that_the_script_does_not_write() -> None:
    assert sorted(file.stem for file in FOLDER.iterdir()) == sorted(PAGES)


def test_panels_do_not_overlap_and_fill_their_rows() -> None:
    for name in PAGES:
        places = [panel["gridPos"] for panel in json.loads(render(name))["panels"]]
        taken = [
            (x, y)
            for place in places
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(taken) == len(set(taken)) == 24 * (1 + max(y for _, y in taken)), name


def test_dashboards_ask_the_data_source_that_is_provisioned() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/sources.yaml").read_text("utf-8"))
    provisioned = {source["uid"]: source["type"] for source in sources["datasources"]}
    for name in PAGES:
        for panel in json.loads(render(name))["panels"]:
            for asked in (panel, *panel["targets"]):
                assert provisioned[asked["datasource"]["uid"]] == asked["datasource"]["type"]
    (exemplars,) = sources["datasources"][0]["jsonData"]["exemplarTraceIdDestinations"]
    assert provisioned[exemplars["datasourceUid"]] == "jaeger"


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_can_be_read_and_is_about_june(expression: str) -> None:
    names = metrics_in(expression)
    assert names
    assert all(name.startswith("june_") or name == "up" for name in names)


def test_promtool_accepts_the_alerts() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "alerts.yaml")


def test_each_alert_fires_where_it_should_and_only_there() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts.test.yaml")


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    looked_at = [each for case in CASES for each in case["alert_rule_test"]]
    fired = {each["alertname"] for each in looked_at if each["exp_alerts"]}
    kept_still = {each["alertname"] for each in looked_at if not each["exp_alerts"]}
    assert fired == kept_still == {rule["alert"] for rule in RULES}


def test_each_alert_says_what_helps() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "remedy"}


# --- june and a Prometheus, both running ---

API_TOKEN = "a token of the test's own"  # noqa: S105
SCRAPED = "june_voice_turn_duration_seconds_count{job='june'} >= 1"


def configure(folder: Path, *, target: str, alertmanager: str) -> Path:
    """Write the shipped configuration with this test's addresses and short intervals; return its path."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text("utf-8"))
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms"}
    token, scraped = folder / "june_api__token", folder / "scraped.yaml"
    token.write_text(API_TOKEN)
    (job,) = config["scrape_configs"]
    job["authorization"]["credentials_file"] = str(token)
    job["static_configs"] = [{"targets": [target]}]
    scraped.write_text(
        yaml.safe_dump({"groups": [{"name": "test", "rules": [{"alert": "Scraped", "expr": SCRAPED}]}]})
    )
    config["rule_files"] = [*(str(PROMETHEUS / file) for file in config["rule_files"]), str(scraped)]
    config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@asynccontextmanager
async def alertmanager() -> AsyncIterator[tuple[str, asyncio.Queue[str]]]:
    """Where Prometheus tells of alerts: the address, and the names of those that came."""
    alerts: asyncio.Queue[str] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        for alert in await request.json():
            alerts.put_nowait(alert["labels"]["alertname"])
        return web.Response()

    application = web.Application()
    application.router.add_post("/api/v2/alerts", take)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}", alerts
    finally:
        await runner.cleanup()


@asynccontextmanager
async def prometheus(config: Path) -> AsyncIterator[str]:
    """Run a real Prometheus and yield its address."""
    process = await asyncio.create_subprocess_exec(
        shutil.which("prometheus") or "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={config.parent / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    said = ""
    try:
        while (found := re.search(r'msg="Listening on" address=(\S+)', said)) is None:
            line = (await asyncio.wait_for(process.stderr.readline(), 30)).decode()
            assert line, said
            said += line
        reading = asyncio.create_task(process.stderr.read())
        yield f"http://{found[1]}"
        process.terminate()
        await reading
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass(frozen=True, slots=True)
class Watched:
    """june after one voice turn, and the Prometheus that has seen it."""

    exposition: str
    prometheus: str

    async def ask(self, expression: str) -> list[dict[str, Any]]:
        """Return Prometheus's answer to a query."""
        async with (
            ClientSession() as session,
            session.get(f"{self.prometheus}/api/v1/query", params={"query": expression}) as response,
        ):
            answer = await response.json()
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])


@pytest.fixture(scope="module")
async def watched(
    tmp_path_factory: pytest.TempPathFactory, questions: tuple[Question, ...]
) -> AsyncIterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    async with TelegramServer() as server, alertmanager() as (told_to, alerts):
        file = write_settings(
            folder,
            telegram={"token": server.token, "api_base": server.base_url},
            access={"owners": [f"telegram:{ALICE}"]},
            llm={"max_tokens": 8},
            api={"token": API_TOKEN},
        )
        async with running(file) as june:
            target = f"127.0.0.1:{(await june.logged('api.opened'))['port']}"
            await june.logged("june.started")
            server.push_file("voice", questions[0].audio)
            await june.logged("turn.finished")
            config = configure(folder, target=target, alertmanager=told_to)
            async with prometheus(config) as address:
                while await asyncio.wait_for(alerts.get(), 30) != "Scraped":
                    pass
                headers = {"Authorization": f"Bearer {API_TOKEN}", "Accept": "text/plain"}
                async with (
                    ClientSession(headers=headers) as session,
                    session.get(f"http://{target}/metrics") as response,
                ):
                    exposition = await response.text()
                yield Watched(exposition, address)


async def test_promtool_accepts_the_configuration_that_a_prometheus_scrapes_june_with(tmp_path: Path) -> None:
    config = configure(tmp_path, target="127.0.0.1:1", alertmanager="127.0.0.1:1")
    assert f"{len(RULES)} rules found" in promtool("check", "config", config)


async def test_a_real_prometheus_scrapes_june_with_its_token(watched: Watched) -> None:
    (up,) = await watched.ask('up{job="june"}')
    assert up["value"][1] == "1"
    (turns,) = await watched.ask('june_voice_turn_duration_seconds_count{outcome="ok"}')
    assert (turns["metric"]["platform"], turns["value"][1]) == ("telegram", "1")


async def test_a_real_prometheus_can_answer_all_that_dashboards_and_alerts_ask(watched: Watched) -> None:
    for expression in EXPRESSIONS:
        await watched.ask(expression)


async def test_no_alert_fires_over_a_june_that_is_well(watched: Watched) -> None:
    firing = await watched.ask('ALERTS{alertstate="firing"}')
    assert {each["metric"]["alertname"] for each in firing} == {"Scraped"}


async def test_promtool_accepts_the_metrics(watched: Watched) -> None:
    promtool("check", "metrics", stdin=watched.exposition.encode())


@pytest.mark.parametrize("name", ASKED)
async def test_every_metric_that_a_dashboard_or_an_alert_names_is_one_of_junes(
    name: str, watched: Watched
) -> None:
    families = dict(re.findall(r"^# TYPE (\S+) (\S+)$", watched.exposition, re.MULTILINE))
    histograms = [family for family, kind in families.items() if kind == "histogram"]
    parts = [f"{family}_{part}" for family in histograms for part in ("bucket", "sum", "count")]
    named = {metric for expression in ASKED[name] for metric in metrics_in(expression)}
    assert named - {"up", *families, *parts} == set()
