"""What watches june: Grafana's dashboards, Prometheus's alerts, and Prometheus itself."""

import json
import shutil
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml

from deploy.dashboards import FOLDER, PAGES, render
from june.settings import PROJECT_ROOT

PROMETHEUS = PROJECT_ROOT / "deploy" / "prometheus"
GRAFANA = PROJECT_ROOT / "deploy" / "grafana"
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text("utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
CASES = yaml.safe_load((PROMETHEUS / "alerts.test.yaml").read_text("utf-8"))["tests"]


def expressions_of(name: str) -> list[str]:
    """What a dashboard asks Prometheus for, with Grafana's variable filled in."""
    panels = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    return [expression.replace("$__rate_interval", "1m") for expression in asked]


EXPRESSIONS = [each for name in PAGES for each in expressions_of(name)] + [rule["expr"] for rule in RULES]


def metrics_in(expression: str) -> set[str]:
    """The names of the series that an expression reads."""
    names = set()

    def see(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            names.add(node.name or "")

    promql_parser.walk(promql_parser.parse(expression), see)
    return names


def promtool(*arguments: str | Path, stdin: bytes = b"") -> str:
    """What promtool says; it must be content."""
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


def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    token = tmp_path / "june_api__token"
    token.write_text("a token")
    config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text("utf-8"))
    config["scrape_configs"][0]["authorization"]["credentials_file"] = str(token)
    config["rule_files"] = [str(PROMETHEUS / file) for file in config["rule_files"]]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    said = promtool("check", "config", tmp_path / "prometheus.yaml")
    assert f"{len(RULES)} rules found" in said
