"""Plans for a checkpoint of integer groups: what engines multiply as one has one format."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the decoder computes with torch: pip install 'tersor[torch]'")

from tersor.core.errors import SchemeError
from tersor.models import Model
from tersor.models.quantized_checkpoint import open_quantized
from tersor.pipeline.calibrated.checkpoint import plan_checkpoint
from tersor.pipeline.calibrated.quantize import How, quantize_calibrated
from tersor.pipeline.planning.analysing import Study, analyse
from tersor.pipeline.planning.goals import PlanGoal
from tersor.pipeline.planning.layout import fused_groups
from tersor.pipeline.planning.measuring import measure_plan
from tersor.pipeline.planning.plan_file import PlanFile
from tersor.pipeline.planning.planning import Planner
from tersor.pipeline.planning.targets import target_named
from tersor.pipeline.steps.planning import Choices

WHERE = "compressed-tensors"
FORMATS = ("int4-channel-sym", "int4-g32-asym", "int8-channel-sym")


def test_a_checkpoint_is_planned_measured_and_written(make: Callable[..., Model], study: Study, tmp_path: Path) -> None:
    model = make()
    studied = analyse(model, tmp_path / "a", replace(study, formats=FORMATS, container=WHERE))
    names = {tensor.name for tensor in studied.analysis.tensors}
    assert names
    assert all(name.startswith("blk.") for name in names)
    planner = Planner(model, studied)
    low, high = (
        8 * (nbytes + studied.analysis.kept_bytes) / studied.analysis.weights
        for nbytes in (planner.frontier.smallest, planner.frontier.largest)
    )
    planned = planner.plan(PlanGoal(bits_per_weight=low + 0.4 * (high - low)), trials=2)
    assert planned.file.predicted["bits_per_weight"] <= low + 0.4 * (high - low)
    for layer in range(2):
        for fused in (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up")):
            assert len({planned.mix.formats[f"blk.{layer}.{kind}.weight"] for kind in fused}) == 1
    assert len(set(planned.mix.formats.values())) > 1
    measured, _ = measure_plan(model, studied, planned, threads=1)
    assert 0.3 < measured.file.measured["kl"] / planned.kl < 3

    path = tmp_path / "plan.yaml"
    planned.file.save(path)
    plan = PlanFile.load(path)
    assert plan.where == WHERE
    how = How(method="gptq", calibration=study.calibration, container=WHERE, proof=False)
    out = tmp_path / "out"
    card = quantize_calibrated(model, plan.file_type, out, how, tensor_formats=plan.tensor_formats(model))
    assert card is not None
    formats = {tensor.name: tensor.format for tensor in card.plan.tensors}
    assert {name: formats[name] for name in names} == planned.mix.formats
    assert card.plan.nbytes == planned.file.predicted["tensor_bytes"]
    with closing(open_quantized(out)) as source:
        kinds = {source.format(name).name for name in source.quantized_names}
    assert len(kinds) == len(set(planned.mix.formats.values()))


def test_groups_are_those_that_engines_multiply_as_one() -> None:
    names = [f"blk.0.{kind}.weight" for kind in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up")]
    assert [len(group) for group in fused_groups(names, WHERE).values()] == [3, 1, 2]
    assert fused_groups(names, "gguf") == {name: (name,) for name in names}
    experts = [f"blk.0.{kind}.weight" for kind in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_inp")]
    assert [len(group) for group in fused_groups(experts, WHERE).values()] == [3, 1]


def test_a_plan_by_hand_that_parts_what_engines_multiply_as_one_is_refused(make: Callable[..., Model]) -> None:
    for pattern, told in (
        ("attn_k=int8-g32", "attn_q as int4-g32-sym-f16 and attn_k as"),
        ("0.ffn_up=int8-g32", "ffn_up"),
    ):
        with pytest.raises(SchemeError, match=f"{told}.*: engines multiply .* as one, give them one format"):
            plan_checkpoint(make(), "int4-g32", WHERE, Choices(tensor_formats=(pattern,)))
    plan_checkpoint(make(), "int4-g32", WHERE, Choices(tensor_formats=("attn_[qkv]=int8-g32",)))


def test_what_a_checkpoint_cannot_hold_is_refused(make: Callable[..., Model], study: Study, tmp_path: Path) -> None:
    model = make()
    with pytest.raises(SchemeError, match="all matrices of gptq take one format: there is nothing to plan"):
        analyse(model, tmp_path / "a", replace(study, formats=FORMATS, container="gptq"))
    two = Choices(tensor_formats=("attn_q=int8-g32",))
    with pytest.raises(SchemeError, match=r"all matrices of gptq take one format, not .* compressed-tensors mixes"):
        plan_checkpoint(model, "int4-g32", "gptq", two)
    with pytest.raises(SchemeError, match="matches no matrix"):
        plan_checkpoint(model, "int4-g32", WHERE, Choices(tensor_formats=("token_embd=int8-g32",)))
    with pytest.raises(SchemeError, match="is no integer format"):
        target_named("cpu", ["int9"], WHERE)
    with pytest.raises(SchemeError, match="no checkpoint container 'zip'"):
        PlanFile({"a": "int4-g32"}, container="zip")
