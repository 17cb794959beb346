"""Plans of a small trained net: within their limits, by what was measured, and the very net that quantizing makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.card import card_path
from tersor.core.errors import QualityError, SchemeError
from tersor.evaluation.nets.images import Preparation
from tersor.graph.net import Net
from tersor.graph.ptq import Recipe
from tersor.pipeline.deploy.making import make_fresh
from tersor.pipeline.nets.mixing.goals import NetGoal
from tersor.pipeline.nets.mixing.planner import NetPlanner
from tersor.pipeline.nets.mixing.speed import Clock
from tersor.pipeline.nets.planning import open_net_planner, sweep_net
from tersor.pipeline.nets.quantizing import NetHow, quantize_network
from tersor.pipeline.planning.plan_file import PlanFile
from tersor.pipeline.steps.cards import load_card
from tersor.targets.estimating.machine import Machine

pytest.importorskip("onnxruntime", reason="nets run in ONNX Runtime: pip install 'tersor[onnx]'")

PLAIN = Recipe(equalize=False, smooth=False, biases=False, weights="rtn")
"""Nothing makes good what rounding does: costs differ."""


@pytest.fixture
def how(folder: Path) -> NetHow:
    return NetHow(calibration="calibration.npz", data="test.npz", recipe=PLAIN, bench=False, threads=1)


@pytest.fixture
def planner(graph: Net, how: NetHow) -> NetPlanner:
    return open_net_planner(graph, how)


def test_every_operator_has_what_it_can_take_and_more_bits_cost_less(planner: NetPlanner) -> None:
    analysis = planner.analysis
    assert [tensor.name for tensor in analysis.tensors] == list(planner.operators.choices)
    for tensor in analysis.tensors:
        count = int(np.prod(tensor.shape))
        found = {one.format: one for one in tensor.candidates}
        # below 256 numbers 16 bits are not worth an operator that decodes them
        assert list(found) == ["int4", "int8", *["fp16"] * (count >= 256), "fp32"]
        assert found["fp32"].nbytes == 4 * count
        # beyond the codes there are scales, and operators with their names
        assert count // 2 < found["int4"].nbytes < count // 2 + 3000
        assert found["int8"].nbytes == pytest.approx(found["int4"].nbytes + count / 2, abs=300)
        assert found["int4"].kl > 3 * found["int8"].kl > 0
        assert found["fp32"].kl == 0
        assert all(one.kl < 0.01 * found["int8"].kl for one in tensor.candidates if one.format == "fp16")


def test_costs_of_operators_nearly_add_up(planner: NetPlanner) -> None:
    rows = planner.analysis.measured
    assert len(rows) >= 3
    assert all(0.4 < one.measured / one.estimated < 2.5 for one in rows)
    # ... and what is predicted of any mix, not only of those that were measured, is near what it measures
    for formats in (("int4", "int8", "fp32", "int4"), ("int8", "fp32", "int4", "int8")):
        mix = planner._mix(dict(zip(planner.operators.choices, formats, strict=True)))
        made = planner.yardstick.divergence(planner.operators.net(mix.formats).net)
        assert 0.3 < made / planner.analysis.predicted(mix.loss) < 3


def test_a_plan_is_the_net_that_quantizing_makes_of_it(
    planner: NetPlanner, graph: Net, how: NetHow, folder: Path
) -> None:
    nets = [planner.operators.net(dict.fromkeys(planner.operators.choices, kind)) for kind in ("int4", "fp32")]
    sizes = [len(made.net.to_bytes()) for made in nets]
    planned = planner.plan(NetGoal(max_bytes=sum(sizes) // 2))
    assert len(set(planned.file.formats.values())) > 1, "a mix, or the test shows nothing"
    planned.file.save(folder / "plan.yaml")
    assert "schema: tersor.mix/2" in (folder / "plan.yaml").read_text()
    made = quantize_network(graph, "int8", replace(how, plan=folder / "plan.yaml"))
    data = made.quantized.net.to_bytes()
    assert data == planned.net.net.to_bytes()
    assert len(data) == planned.file.measured["file_bytes"] <= sum(sizes) // 2
    formats = {row.name: row.format for row in made.card.plan.tensors}
    told = {"int4": "int4-channel-sym", "int8": "int8-channel-sym", "fp16": "f16", "fp32": "f32"}
    weights = {
        str(node.name): str(node.inputs[1].name)  # type: ignore[union-attr]  # they have one
        for node in graph.nodes
        if node.op_type in ("Conv", "Gemm")
    }
    assert {name: formats[weights[name]] for name in planned.file.formats} == {
        name: told[kind] for name, kind in planned.file.formats.items()
    }
    assert made.card.plan.recipe.format == "mixed"
    assert made.card.plan.recipe.tensor_formats == tuple(
        f"{name}={kind}" for name, kind in planned.file.formats.items()
    )


def test_a_planned_net_is_made_again_from_its_card(graph: Net, how: NetHow, folder: Path) -> None:
    graph.save(folder / "net.onnx")
    names = [str(node.name) for node in graph.nodes if node.op_type in ("Conv", "Gemm")]
    formats = dict(zip(names, ("fp32", "int4", "fp16", "int8"), strict=True))
    recent = np.random.default_rng(0).random((32, 3, 8, 8), np.float32)
    np.savez(folder / "recent.npz", **{str(graph.inputs[0].name): recent})  # type: ignore[arg-type]  # a name
    made = quantize_network(graph, "int8", replace(how, plan=PlanFile(formats, container="onnx")))
    make_fresh(folder / "net.onnx", made.card, [folder / "recent.npz"], folder / "fresh.onnx")
    fresh = load_card(card_path(folder / "fresh.onnx", "json"))
    assert {row.name: row.format for row in fresh.plan.tensors} == {
        row.name: row.format for row in made.card.plan.tensors
    }


def test_more_bytes_are_never_worse_and_never_exceeded(planner: NetPlanner) -> None:
    smallest = planner.frontier.at(planner.frontier.smallest)
    floor = len(planner.operators.net(smallest.formats).net.to_bytes())
    losses = []
    for more in (0, 300, 900, 2000, 4000):
        planned = planner.plan(NetGoal(max_bytes=floor + more), trials=0)
        assert planned.file.measured["file_bytes"] <= floor + more
        losses.append(planned.mix.loss)
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]
    with pytest.raises(SchemeError, match=r"bytes are left for weights with a choice, and the smallest mix"):
        planner.plan(NetGoal(max_bytes=floor - 2000))


def test_no_operator_could_be_smaller_and_keep_the_accuracy(graph: Net, how: NetHow) -> None:
    noise = np.random.default_rng(1).random((256, 3, 8, 8), np.float32)  # in which no class is plain
    how = replace(how, data=None, calibration=np.split(noise, 4))
    planner = open_net_planner(graph, how, formats=("int4", "int8", "fp32"))
    ends = {kind: planner._mix(dict.fromkeys(planner.operators.choices, kind)) for kind in ("int4", "int8", "fp32")}
    assert planner.drop(ends["int4"]) > 4 * planner.drop(ends["int8"]) > 0 == planner.drop(ends["fp32"])
    sizes = []
    for limit in (0.5, 2.0, 5.0):
        found = planner.plan(NetGoal(max_drop=limit), trials=40)
        assert found.file.measured["drop_points"] == planner.drop(found.mix) <= limit
        sizes.append(found.mix.nbytes)
        for mix in (found.mix, planner._shrunk(ends["fp32"], limit, 60)):
            for _, _, smaller in planner._falls(mix):
                assert smaller.nbytes < mix.nbytes
                assert planner.drop(smaller) > limit >= planner.drop(mix)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < ends["int8"].nbytes


def test_a_limit_that_nothing_keeps_is_said_so(planner: NetPlanner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "judge", _Bad())
    with pytest.raises(QualityError, match=r"at most 1 points lost: the best mix within the other limits loses 3\.00"):
        planner.plan(NetGoal(max_drop=1.0))


class _Bad:
    """Whatever it is shown loses three points."""

    items, is_labelled = 1, True

    def drop(self, _net: Any) -> float:
        return 3.0


def test_operators_that_are_fixed_have_no_choice(graph: Net, how: NetHow) -> None:
    first = next(str(node.name) for node in graph.nodes if node.op_type == "Conv")
    planned = open_net_planner(graph, how, fixed=(f"^{first}$=fp32",)).plan(NetGoal(bits_per_weight=30))
    assert planned.file.formats[first] == "fp32"
    with pytest.raises(SchemeError, match="planned as int4, int8, fp16, fp32, not 'q4_0'"):
        open_net_planner(graph, how, fixed=("x=q4_0",))
    with pytest.raises(SchemeError, match="planned as int4, int8, fp16, fp32, not int5"):
        open_net_planner(graph, how, formats=("int5",))
    with pytest.raises(SchemeError, match="no profile 'tpu'"):
        open_net_planner(graph, how, target="tpu")


def test_costs_are_kept_and_taken_again_only_of_the_same(graph: Net, how: NetHow, folder: Path) -> None:
    saved = folder / "costs"
    first = open_net_planner(graph, how, saved=saved)
    written = (saved / "analysis.json").stat().st_mtime_ns
    assert open_net_planner(graph, how, saved=saved).analysis == first.analysis
    assert (saved / "analysis.json").stat().st_mtime_ns == written
    other = open_net_planner(graph, replace(how, limit=1), saved=saved)
    assert other.analysis.calibration != first.analysis.calibration
    assert (saved / "analysis.json").stat().st_mtime_ns > written


@pytest.mark.parametrize("which", ["calibration.npz", "test.npz", "preparation"])
def test_costs_on_other_images_of_the_same_name_and_number_are_not_taken(
    which: str, graph: Net, how: NetHow, folder: Path
) -> None:
    saved = folder / "costs"
    first = open_net_planner(graph, how, saved=saved)
    if which == "preparation":
        how = replace(how, preparation=Preparation(mean=(0.5, 0.5, 0.5)))
    else:
        with np.load(folder / which) as arrays:
            content = dict(arrays)
        np.savez(folder / which, **{**content, "images": content["images"][::-1]})
    other = open_net_planner(graph, how, saved=saved)
    assert other.analysis.calibration != first.analysis.calibration
    assert "sha256" in first.analysis.calibration


def test_a_curve_rises_with_its_bytes_and_is_measured(planner: NetPlanner) -> None:
    curve = sweep_net(planner, [6.0, 8.0, 12.0, 20.0])
    assert len(curve.rows) >= 3
    sizes = [row.bits_per_weight for row in curve.rows]
    assert sizes == sorted(sizes)
    assert [row.kl for row in curve.rows] == sorted((row.kl for row in curve.rows), reverse=True)
    assert all(row.measured is not None and row.drop is not None for row in curve.rows)
    assert "lost, points" in curve.rows[0].shown()
    with pytest.raises(SchemeError, match=r"no mix has 0\.1 to 0\.2 bits per weight"):
        sweep_net(planner, [0.1, 0.2])


SLOW = Machine("slow", {"float32": 1e9, "int8": 8e9}, 1e9, is_measured=False)
"""Eight times as fast on integers; so slow that what a call costs by itself is nothing."""


def test_less_time_puts_more_operators_on_integers(planner: NetPlanner, graph: Net) -> None:
    feeds = {name: values[:1] for name, values in planner.yardstick.batches[0].items()}
    planner.clock = Clock(planner.operators, SLOW, feeds, is_here=False)
    ends = [planner._mix(dict.fromkeys(planner.operators.choices, kind)) for kind in ("int8", "fp32")]
    least, most = (planner.clock.estimated(planner.operators.net(mix.formats)).value for mix in ends)
    assert least < most / 2
    counts, losses = [], []
    for share in (1.0, 0.7, 0.4, 0.0):
        limit = (least + share * (most - least)) * 1.03
        planned = planner.plan(NetGoal(max_latency_ms=limit))
        assert planned.file.predicted["latency_ms"] <= limit
        assert planner.clock.estimated(planned.net).value <= limit
        counts.append(sum(kind in ("int4", "int8") for kind in planned.file.formats.values()))
        losses.append(planned.mix.loss)
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] >= 3
    assert losses == sorted(losses)
    with pytest.raises(SchemeError, match=r"no mix of these formats keeps that; operators with a choice take"):
        planner.plan(NetGoal(max_latency_ms=least / 2))
    # a size beside it: both are kept
    both = planner.plan(NetGoal(max_latency_ms=(least + most) / 2, max_bytes=40_000))
    assert both.file.measured["file_bytes"] <= 40_000
    assert planner.clock.estimated(both.net).value <= (least + most) / 2


def test_room_in_a_file_is_no_room_in_bits(planner: NetPlanner) -> None:
    alone = planner.plan(NetGoal(bits_per_weight=6.0))
    for room in (2_000, 60_000):
        both = planner.plan(NetGoal(bits_per_weight=6.0, max_bytes=int(alone.file.measured["file_bytes"]) + room))
        assert both.file.predicted["bits_per_weight"] <= 6.0
        assert both.mix.loss <= alone.mix.loss * (1 + 1e-9)


def test_time_is_measured_where_the_machine_is_at_hand(graph: Net, how: NetHow) -> None:
    planner = open_net_planner(graph, how, needs_speed=True)
    planned = planner.plan(NetGoal(max_latency_ms=1000.0), trials=0)
    assert 0 < planned.file.measured["latency_ms"] <= 1000
    assert set(planned.file.formats.values()) == {"fp32"}
    with pytest.raises(SchemeError, match=r"a call in 1e-06 ms: no mix of these formats keeps that"):
        planner.plan(NetGoal(max_latency_ms=1e-6))


def test_a_machine_of_which_too_little_is_told_is_refused(graph: Net, how: NetHow) -> None:
    planner = open_net_planner(graph, how, target="snapdragon-8-gen-3", needs_speed=True)
    with pytest.raises(SchemeError, match="nobody tells its peak in float32"):
        planner.plan(NetGoal(max_latency_ms=1.0))


def test_what_does_not_go_together_is_refused(graph: Net, how: NetHow, folder: Path) -> None:
    plan = PlanFile({"nothing": "int8"}, container="onnx")
    with pytest.raises(SchemeError, match=r"the plan names 'nothing', which .* does not have"):
        quantize_network(graph, "int8", replace(how, plan=plan))
    with pytest.raises(SchemeError, match="a plan says what operators become: max_drop would change that"):
        quantize_network(graph, "int8", replace(how, plan=plan, max_drop=1.0))
    with pytest.raises(SchemeError, match="the plan was made for engine openvino, not tensorrt"):
        quantize_network(graph, "int8", replace(how, plan=replace(plan, engine="openvino"), target="tensorrt"))
    with pytest.raises(SchemeError, match="one of a language model, in gguf"):
        quantize_network(graph, "int8", replace(how, plan=PlanFile({"a": "q4_0"})))
    with pytest.raises(SchemeError, match="the plan of a net needs a goal"):
        NetGoal()
    with pytest.raises(SchemeError, match="in percentage points, from 0 to 100"):
        NetGoal(max_drop=-1.0)
