"""The files for Prometheus and Grafana: current, complete, about what is exported, and true to the rules."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tersor.core.errors import SchemeError
from tersor.deploy.alerting.files import DASHBOARD, RULES_FILE, TESTS, monitoring_files
from tersor.deploy.alerting.grafana import PANELS
from tersor.deploy.alerting.prometheus import can_fire
from tersor.deploy.alerting.rules import RULES, changed
from tersor.deploy.gateway.metrics import Metrics

yaml = pytest.importorskip("yaml", reason="reads them: pip install 'tersor[serve]'")
pytest.importorskip("prometheus_client", reason="exports metrics: pip install 'tersor[serve]'")

SHIPPED = Path(__file__).parents[3] / "examples" / "monitoring"
PROMTOOL = os.environ.get("TERSOR_PROMTOOL") or shutil.which("promtool")
NEEDS_PROMTOOL = pytest.mark.skipif(PROMTOOL is None, reason="promtool judges them: put it on PATH, or TERSOR_PROMTOOL")
NAME = re.compile(r"\btersor_\w+")
OTHER_LIMITS: Mapping[str, object] = {
    "EngineDown": {"for_s": 0.5},
    "EngineRestarts": 7,
    "HighErrorShare": 0,
    "HighFallbackShare": 1,  # never
    "SlowAnswers": {"limit": 0.35, "for_s": 7},
    "LowAgreement": 1,
    "LowAccuracy": {"limit": 0.5, "for_s": 4000},
    "HighMemory": 0.5,
}


def promtool(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, cwd=folder, timeout=60, check=False)


def written(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def exported() -> dict[str, tuple[str, ...]]:
    """Series of a gateway → their labels."""
    found = {}
    for metric in vars(Metrics()).values():
        kind, name = getattr(metric, "_type", ""), getattr(metric, "_name", "")
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}.get(kind, ())
        for end in ends:
            found[name + end] = (*metric._labelnames, *(("le",) if end == "_bucket" else ()))
    return found


def test_what_is_shipped_is_what_the_rules_say() -> None:
    assert {path.name: path.read_text() for path in SHIPPED.iterdir()} == dict(monitoring_files())


def cases(files: Mapping[str, str]) -> Mapping[str, list[list[Mapping[str, Any]]]]:
    """Alert → the checks of each of its cases."""
    found: dict[str, list[list[Mapping[str, Any]]]] = {}
    for case in yaml.safe_load(files[TESTS])["tests"]:
        checks = case["alert_rule_test"]
        (name,) = {check["alertname"] for check in checks}
        found.setdefault(name, []).append(checks)
    return found


@pytest.mark.parametrize("limits", [{}, OTHER_LIMITS], ids=["usual", "other"])
def test_every_alert_has_a_case_in_which_it_fires_and_ends_and_one_in_which_it_is_silent(
    limits: Mapping[str, object],
) -> None:
    rules = changed(limits)
    files = monitoring_files(rules)
    named = {name for name, rule in rules.items() if can_fire(rule)}
    assert {rule["alert"] for rule in yaml.safe_load(files[RULES_FILE])["groups"][0]["rules"]} == named
    tested = cases(files)
    assert set(tested) == named
    for name, found in tested.items():
        fires = [[bool(check["exp_alerts"]) for check in case] for case in found]
        assert [case for case in fires if True in case and case[-1] is False], name
        assert [case for case in fires if True not in case], name
        if rules[name].clear != rules[name].limit:
            assert [case for case in fires if case.count(True) == 2], name


def test_rules_and_dashboard_name_only_what_a_gateway_exports() -> None:
    there = exported()
    for name, text in monitoring_files().items():
        used = set(NAME.findall(text)) - {"tersor_alerts_tests"}
        assert used
        assert used <= set(there), name
    for panel in PANELS:
        for legend, expr in panel.queries.items():
            for metric in NAME.findall(expr):
                wanted = set(re.findall(r"\{\{(\w+)\}\}", legend)) | set(re.findall(r"[{,] ?(\w+)=", expr)) - {"job"}
                assert wanted <= set(there[metric]), (panel.title, metric)
    for rule in RULES.values():
        for metric in NAME.findall(rule.expr):
            if metric != "tersor_machine_memory_bytes":
                assert {"model", "variant"} <= set(there[metric]), rule.name


def test_the_dashboard_shows_what_is_watched() -> None:
    document = json.loads(monitoring_files()[DASHBOARD])
    shown = " ".join(target["expr"] for panel in document["panels"] for target in panel["targets"])
    for name in exported():
        assert re.sub("_(bucket|sum|count)$", "", name) in shown, name
    for share in ("0.5", "0.95", "0.99"):
        assert f"histogram_quantile({share}, sum by (model, variant, le) (rate(tersor_request_seconds_bucket" in shown
    places = [tuple(panel["gridPos"].values()) for panel in document["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in document["panels"]}) == len(places)


@pytest.mark.parametrize("limit", [60, 61.5])
def test_a_limit_that_prometheus_cannot_see_is_refused(limit: float) -> None:
    with pytest.raises(SchemeError, match=f"SlowAnswers: Prometheus counts times up to 60 s, not {limit:g}"):
        monitoring_files(changed({"SlowAnswers": limit}))
    monitoring_files(changed({"SlowAnswers": 59.9}))


@NEEDS_PROMTOOL
@pytest.mark.parametrize("limits", [{}, OTHER_LIMITS], ids=["usual", "other"])
def test_promtool_finds_that_each_alert_fires_ends_and_is_silent(limits: Mapping[str, object], tmp_path: Path) -> None:
    written(tmp_path, monitoring_files(changed(limits)))
    checked, tested = promtool(tmp_path, "check", "rules", RULES_FILE), promtool(tmp_path, "test", "rules", TESTS)
    assert (checked.returncode, tested.returncode) == (0, 0), checked.stdout + tested.stdout + tested.stderr


DAMAGE = {
    "no for": ("HighErrorShare", r"\n        for: 120s", ""),
    "no hysteresis": ("LowAgreement", r" and on \([\w, ]+\) ALERTS\{[^}]*\}", " and on () vector(1) * 0 == 1"),
    "hysteresis for ever": ("HighMemory", r"> 0.85\) and", "> -99) and"),
    "no guard": ("HighFallbackShare", r"\) and on \([\w, ]+\) \(\(sum.*", ")"),
    "other severity": ("InputDrift", "severity: warning", "severity: page"),
    "other side": ("LowAccuracy", r"tersor_accuracy_ratio\) < 0", "tersor_accuracy_ratio) > 0"),
    "other window": ("EngineRestarts", r"\[15m\]", "[2m]"),
    "a machine without its gateway": ("HighMemory", r" / on \(job, instance\) group_left \(\) ", " / "),
    "no gateway": ("SlowAnswers", r"sum by \(job, instance, ", "sum by ("),
}


@NEEDS_PROMTOOL
@pytest.mark.parametrize("damage", DAMAGE)
def test_rules_that_are_wrong_fail_their_tests(damage: str, tmp_path: Path) -> None:
    alert, old, new = DAMAGE[damage]
    files = dict(monitoring_files({alert: RULES[alert]}))
    files[RULES_FILE], count = re.subn(old, new, files[RULES_FILE])
    assert count
    written(tmp_path, files)
    assert promtool(tmp_path, "check", "rules", RULES_FILE).returncode == 0
    assert promtool(tmp_path, "test", "rules", TESTS).returncode == 1


@NEEDS_PROMTOOL
def test_every_query_of_the_dashboard_can_be_asked(tmp_path: Path) -> None:
    exprs = [expr for panel in PANELS for expr in panel.queries.values()]
    rules = [{"record": f"tersor:query{number}", "expr": expr} for number, expr in enumerate(exprs)]
    written(tmp_path, {"queries.yml": json.dumps({"groups": [{"name": "queries", "rules": rules}]})})
    result = promtool(tmp_path, "check", "rules", "queries.yml")
    assert (result.returncode, f"{len(exprs)} rules found" in result.stdout) == (0, True), result.stdout + result.stderr
