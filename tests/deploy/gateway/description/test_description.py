"""What the description says is what the gateway does; thousands of made-up requests find nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tersor.deploy.gateway.description.document import FOR_BROWSERS, description
from tersor.deploy.gateway.description.routes import ROUTES
from tersor.deploy.gateway.description.schemas import SCHEMAS

from ..conftest import YAML, Live, live
from ..operating.orders import BODY, JSON, asked
from .open_inference import protocol

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"),
    "unsupported_method",
)


@pytest.fixture(scope="module")
def gateway(deployed: Callable[[str], Path]) -> Iterator[Live]:
    """One of its own: it is asked to unload and roll back what it has."""
    with live(deployed(YAML + "# described\n")) as found:
        yield found


def test_the_gateway_tells_what_the_table_says(gateway: Live) -> None:
    status, told, _ = asked(gateway.address, "GET", "/openapi.json")
    assert (status, told) == (200, json.loads(json.dumps(description())))
    described = {(method.upper(), path) for path, methods in told["paths"].items() for method in methods}
    assert described == {(row.method, row.path) for row in ROUTES if row.guard not in FOR_BROWSERS}
    names = [operation["operationId"] for methods in told["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "row", [row for row in ROUTES if row.operation != "dashboard_events"], ids=lambda row: f"{row.method} {row.path}"
)
def test_every_route_is_there_and_guarded_as_it_says(row: Any, gateway: Live) -> None:
    path = row.path.format(model="nothing", version="1", name="nothing") if "{" in row.path else row.path
    body: dict[str, Any] | None = {} if row.method == "POST" else None
    status, told, _ = asked(gateway.address, row.method, path, body, {**JSON, "Origin": "http://evil.example"})
    assert (status == 403) == (row.guard in ("admin", "form")), told
    assert status not in (405, 500), told
    assert "Not Found" not in str(told)  # what a path that is no route gets


def test_every_schema_is_used() -> None:
    text = json.dumps(description()["paths"]) + json.dumps(SCHEMAS)
    assert [name for name in SCHEMAS if f'"#/components/schemas/{name}"' not in text] == []


def fuzzed(gateway: Live, document: dict[str, Any], folder: Path, examples: int) -> None:
    """Let schemathesis ask whatever the document lets it; assert that it finds nothing."""
    pytest.importorskip("schemathesis", reason="makes up requests: pip install schemathesis")
    (folder / "openapi.json").write_text(json.dumps(document))
    options = ["--checks", ",".join(CHECKS), "--max-examples", str(examples), "--seed", "1", "--no-color"]
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run", "openapi.json"]
    result = subprocess.run(
        [*command, "--url", gateway.address, *options, "--generation-database", "none"],
        capture_output=True, text=True, cwd=folder, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert asked(gateway.address, "GET", "/healthz")[0] == 200


@pytest.mark.slow
def test_no_made_up_request_brings_a_fault_or_a_status_that_is_not_described(gateway: Live, tmp_path: Path) -> None:
    document = asked(gateway.address, "GET", "/openapi.json")[1]
    names = {"model": ["demo", "twice", "none"], "version": ["1", "2"]}
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in names:  # else nothing would come further than to "no such model"
                    parameter["schema"] = {"enum": names[parameter["name"]]}
    for name in ("CompletionRequest", "ChatRequest", "EmbeddingsRequest"):
        properties = document["components"]["schemas"][name]["properties"]
        properties["model"] = {"enum": ["demo", "none"]}
        for length in {"max_tokens", "max_completion_tokens"} & set(properties):
            properties[length]["maximum"] = 8
    fuzzed(gateway, document, tmp_path, 30)


@pytest.mark.slow
def test_the_open_inference_protocol_is_kept(gateway: Live, tmp_path: Path) -> None:
    order = {"action": "reload"}  # loads what the test before has unloaded
    assert asked(gateway.address, "POST", "/v1/rollout", order, JSON)[0] == 200
    fuzzed(gateway, protocol(["twice"]), tmp_path, 60)


def test_prometheus_takes_the_metrics(gateway: Live) -> None:
    tool = os.environ.get("TERSOR_PROMTOOL") or shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool checks them: put it on PATH, or name it in TERSOR_PROMTOOL")
    asked(gateway.address, "POST", "/v1/completions", BODY, JSON)
    text = asked(gateway.address, "GET", "/metrics")[1]
    assert "tersor_requests_total{" in text
    result = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
