"""The dashboard against Grafana's own model of one: what that does not know would be dropped when it is imported.

pip install 'grafana-foundation-sdk==1769699379!11.6.0'
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tersor.deploy.alerting.files import DASHBOARD, monitoring_files

REASON = "has Grafana's types: pip install 'grafana-foundation-sdk==1769699379!11.6.0'"
sdk: Any = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason=REASON)
timeseries: Any = pytest.importorskip("grafana_foundation_sdk.models.timeseries", reason=REASON)
prometheus: Any = pytest.importorskip("grafana_foundation_sdk.models.prometheus", reason=REASON)
encoder: Any = pytest.importorskip("grafana_foundation_sdk.cog.encoder", reason=REASON)
plugins: Any = pytest.importorskip("grafana_foundation_sdk.cog.plugins", reason=REASON)
plugins.register_default_plugins()


def dropped(document: Any, kept: Any, place: str = "") -> Iterator[str]:
    """Places of what does not come back from the model as it was."""
    if isinstance(document, dict) and isinstance(kept, dict):
        for key, value in document.items():
            if key in kept:
                yield from dropped(value, kept[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"
    elif isinstance(document, list) and isinstance(kept, list) and len(document) == len(kept):
        for number, (value, other) in enumerate(zip(document, kept, strict=True)):
            yield from dropped(value, other, f"{place}[{number}]")
    elif document != kept:
        yield place


def through(document: Any) -> tuple[Any, list[str]]:
    """The model of a document, and what it does not keep of it."""
    model = sdk.Dashboard.from_json(copy.deepcopy(document))
    return model, list(dropped(document, json.loads(json.dumps(model, cls=encoder.JSONEncoder))))


def test_grafana_keeps_all_of_the_dashboard() -> None:
    model, lost = through(json.loads(monitoring_files()[DASHBOARD]))
    assert lost == []
    for panel in model.panels:
        assert isinstance(panel.options, timeseries.Options)
        assert panel.targets
        assert all(isinstance(target, prometheus.Dataquery) and target.expr for target in panel.targets)
        assert panel.datasource.uid == "${datasource}"
    assert {variable.type_val for variable in model.templating.list_val} == {"datasource", "query"}


def test_a_word_that_grafana_does_not_know_is_found() -> None:
    document = json.loads(monitoring_files()[DASHBOARD])
    for place, word in (
        (document, "timezon"),
        (document["panels"][0], "gridpos"),
        (document["panels"][0]["targets"][0], "legend"),
        (document["panels"][0]["fieldConfig"]["defaults"], "units"),
        (document["templating"]["list"][1], "includeall"),
    ):
        place[word] = "x"
        assert any(found.endswith(f".{word}") for found in through(document)[1]), word
        del place[word]
