"""What a registry does not let serve is refused before anything is loaded, with the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tersor.core.errors import MissingError, QualityError, SchemeError
from tersor.deploy.config import ModelPlan, VariantPlan
from tersor.deploy.gateway.operating.standing import Inspector
from tersor.deploy.registry.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """Knows `full`, and `q4` that is compared with it; the files only begin like a GGUF."""
    for name in ("full", "q4", "other"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF" + name.encode())
    with Registry.open(tmp_path, mode="create") as opened:
        opened.add_artefact("full", tmp_path / "full.gguf", who="ann")
        opened.add_artefact("q4", tmp_path / "q4.gguf", who="ann", baseline="full")
        yield opened


@pytest.fixture
def plan(tmp_path: Path) -> ModelPlan:
    paths = {"small": "q4.gguf", "big": "full.gguf"}
    variants = {name: VariantPlan("llama.cpp", str(tmp_path / path)) for name, path in paths.items()}
    return ModelPlan("small", variants, "big")


def with_file(plan: ModelPlan, variant: str, path: Path | None) -> ModelPlan:
    given = VariantPlan("llama.cpp", "" if path is None else str(path))
    return replace(plan, variants={**plan.variants, variant: given})


def test_a_pass_lets_it_serve(registry: Registry, plan: ModelPlan, tmp_path: Path) -> None:
    inspector = Inspector(registry, tmp_path)
    with pytest.raises(
        QualityError, match=r"models\.chat\.variants\.small: q4:1 may not serve: no gate has compared it"
    ):
        inspector.standings("chat", plan)
    verdict = registry.record_verdict("q4", "pass", {}, who="gate")
    found = inspector.standings("chat", plan)
    assert (found["small"].label, found["small"].verdict, found["small"].override) == ("q4:1", verdict, None)
    assert (found["big"].label, found["big"].verdict) == ("full:1", None)
    (tmp_path / "q4.gguf").write_bytes(b"GGUFq5")  # hashed anew, for its file is another
    with pytest.raises(
        MissingError, match=r"q4.gguf is not registered; `tersor registry add /.*/q4.gguf --name NAME --base"
    ):
        inspector.standings("chat", plan)


@pytest.mark.parametrize("outcome", ["fail", "inconclusive"])
def test_another_verdict_does_not_and_somebody_can_answer_for_it(
    outcome: str, registry: Registry, plan: ModelPlan, tmp_path: Path
) -> None:
    registry.record_verdict("q4", outcome, {}, who="gate")  # type: ignore[arg-type]  # one of them
    with pytest.raises(
        QualityError, match=r"gate.*judge it with `tersor gate /.*/q4.gguf --registry /.*registry override q4:1"
    ):
        Inspector(registry, tmp_path).standings("chat", plan)
    override = registry.override("q4", who="bob", why="ticket 7")
    assert Inspector(registry, tmp_path).standings("chat", plan)["small"].override == override
    registry.record_verdict("q4", "fail", {}, who="gate")
    with pytest.raises(QualityError, match="it failed its gate"):
        Inspector(registry, tmp_path).standings("chat", plan)


def test_a_primary_that_was_registered_as_full_precision_does_not_pass_by(
    registry: Registry, plan: ModelPlan, tmp_path: Path
) -> None:
    registry.add_artefact("innocent", tmp_path / "other.gguf", who="eve")
    inspector, sly = Inspector(registry, tmp_path), with_file(plan, "small", tmp_path / "other.gguf")
    with pytest.raises(QualityError, match="innocent:1 was registered without a baseline to be judged by"):
        inspector.standings("chat", sly)
    alone = replace(with_file(plan, "small", tmp_path / "full.gguf"), fallback=None)
    assert inspector.standings("chat", alone)["small"].label == "full:1"


def test_the_fallback_is_registered_too_and_of_full_precision(
    registry: Registry, plan: ModelPlan, tmp_path: Path
) -> None:
    registry.record_verdict("q4", "pass", {}, who="gate")
    inspector = Inspector(registry, tmp_path)
    with pytest.raises(
        MissingError, match=r"variants\.big: other.gguf is not registered; `tersor registry add /.*/other.gguf"
    ):
        inspector.standings("chat", with_file(plan, "big", tmp_path / "other.gguf"))
    registry.add_artefact("q8", tmp_path / "other.gguf", who="ann", baseline="full")
    with pytest.raises(SchemeError, match=r"variants\.big: q8:1 is compared with full:1, so it is no fallback"):
        inspector.standings("chat", with_file(plan, "big", tmp_path / "other.gguf"))


def test_a_fallback_on_another_server_needs_no_file_but_a_primary_does(
    registry: Registry, plan: ModelPlan, tmp_path: Path
) -> None:
    registry.record_verdict("q4", "pass", {}, who="gate")
    inspector = Inspector(registry, tmp_path)
    assert set(inspector.standings("chat", with_file(plan, "big", None))) == {"small"}
    with pytest.raises(QualityError, match=r"variants\.small: no artefact that a registry could know"):
        inspector.standings("chat", with_file(plan, "small", None))
