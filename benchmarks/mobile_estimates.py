"""How near estimates of latency come to what is measured, on nets and engines that they were not fitted to.

    python benchmarks/mobile_estimates.py [--nets resnet20,mobilenetv2,…] [--engines executorch,onnxruntime]
    python benchmarks/mobile_estimates.py --calibrate

The rates in src/tersor/targets/estimating/measured.py were fitted by --calibrate to small nets of one kind of operator
each, run by ONNX Runtime with one thread. Held out are whole nets, and ExecuTorch, of which only the cost of a call and
of an operator that does nothing is known. One thread, and the shortest processor time of many calls: other work of the
machine disturbs that least. Needs: pip install 'tersor[torch,onnx,mobile]'
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper

from nets import MobileNetV2, ResNet18, ResNet20, settled
from tersor.engines.executorch.program import Program, lower
from tersor.graph.capture import capture
from tersor.graph.costs import work_of
from tersor.graph.net import Net
from tersor.graph.ptq import QuantizedNet, Recipe, quantize_net
from tersor.graph.sessions import Session
from tersor.graph.simplify import simplified
from tersor.graph.writing.xnnpack import exported, float_module, xnnpack_module
from tersor.targets.estimating.estimate import Unknown
from tersor.targets.estimating.latency import estimate_latency
from tersor.targets.estimating.machine import Machine, of_roofs
from tersor.targets.estimating.measured import rates_of
from tersor.targets.estimating.rates import Timed, fit_rates
from tersor.targets.roofs import Roofs, measure_roofs

PLAIN: dict[str, Any] = {"ranges": "minmax", "weights": "rtn", "equalize": False, "smooth": False, "biases": False}
ASKED = 0.30
Layer = tuple[Any, ...]


def small_nets() -> Iterator[tuple[str, list[Layer], tuple[int, ...]]]:
    """Yield name, layers and input of each net that rates are fitted to."""
    for c, side in ((16, 32), (32, 28), (64, 28), (64, 56), (128, 14), (128, 28), (256, 14), (512, 7)):
        yield f"convolution {c}×{side}²", [("conv", c, 3, 1, 1), ("Relu",)] * 2, (1, c, side, side)
    for o, kernel, stride, side in ((64, 7, 2, 224), (32, 3, 1, 32), (32, 3, 2, 160)):
        yield f"stem {o}×{side}²", [("conv", o, kernel, stride, 1), ("Relu",)], (1, 3, side, side)
    sizes = ((16, 96, 56), (24, 144, 28), (144, 24, 28), (32, 192, 14), (192, 64, 14), (384, 96, 14), (160, 960, 7))
    for i, o, side in (*sizes, (960, 160, 7), (320, 1280, 7), (256, 256, 14)):
        yield f"pointwise {i}-{o}×{side}²", [("conv", o, 1, 1, 1), ("Relu",), ("conv", i, 1, 1, 1)], (1, i, side, side)
    for c, side, stride in ((32, 56, 1), (96, 56, 2), (144, 28, 1), (192, 14, 1), (384, 14, 1), (960, 7, 1)):
        layers = [("conv", c, 3, stride, c), ("Relu",), ("conv", c, 3, 1, c), ("Relu",)]
        yield f"depthwise {c}×{side}²", layers, (1, c, side, side)
    for m, k, n in (
        (1, 512, 1000),
        (1, 1280, 1000),
        (16, 384, 1536),
        (32, 384, 384),
        (128, 384, 384),
        (128, 384, 1536),
    ):
        yield f"linear {m}×{k}×{n}", [("linear", n), ("linear", k)], (m, k)
    yield "weights in memory", [("linear", 8000), ("linear", 3000)], (1, 3000)
    for c, side in ((16, 32), (64, 56), (32, 112), (256, 14)):
        first = ("conv", c, 1, 1, 1)
        yield f"sums {c}×{side}²", [first, ("Add", "x"), ("Relu",), ("Add", "x"), ("Add", "v0")], (1, c, side, side)
        yield f"sums of integers {c}×{side}²", [first, first, ("Add", "v0"), ("Add", "v1")], (1, c, side, side)
        yield f"windows {c}×{side}²", [first, ("MaxPool",)], (1, c, side, side)
        yield f"means {c}×{side}²", [first, ("GlobalAveragePool",)], (1, c, side, side)
    yield "many of nothing", [("conv", 8, 1, 1, 1)] * 12, (1, 8, 4, 4)


def drawn(name: str, layers: list[Layer], shape: tuple[int, ...]) -> Net:
    """Return the net of such layers, its weights noise."""
    random, nodes, stored, at, channels = np.random.default_rng(0), [], [], "x", shape[1]

    def weight(name: str, *dims: int) -> str:
        spread = math.sqrt(2 / max(math.prod(dims[1:]), 1))
        stored.append(onnx.numpy_helper.from_array((random.standard_normal(dims) * spread).astype(np.float32), name))
        return name

    for place, (kind, *more) in enumerate(layers):
        made, inputs, settings = f"v{place}", [at], {}
        if kind == "conv":
            outputs, kernel, stride, group = more
            inputs += [weight(f"w{place}", outputs, channels // group, kernel, kernel), weight(f"b{place}", outputs)]
            settings, channels = {"strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": group}, outputs
        elif kind == "linear":
            inputs, channels = [at, weight(f"w{place}", channels, more[0])], more[0]
        elif kind == "Add":
            inputs = [at, more[0]]
        elif kind == "MaxPool":
            settings = {"kernel_shape": [2, 2], "strides": [2, 2]}
        operator = {"conv": "Conv", "linear": "MatMul"}.get(kind, kind)
        nodes.append(helper.make_node(operator, inputs, [made], name=f"n{place}", **settings))
        at = made
    ends = [helper.make_tensor_value_info("x", 1, shape), helper.make_tensor_value_info(at, 1, None)]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Net.parse(onnx.shape_inference.infer_shapes(model).SerializeToString(), name)


def shortest(run: Callable[[], object], seconds: float = 0.4) -> float:
    """Return the shortest processor time of many calls, seconds."""
    best, calls, end = math.inf, 0, time.perf_counter() + seconds
    run()
    while calls < 30 or time.perf_counter() < end:
        began = time.process_time()
        run()
        best, calls = min(best, time.process_time() - began), calls + 1
    return best


def best_roofs() -> Roofs:
    """Return the best of several measurements, for each figure."""
    found = [measure_roofs(1) for _ in range(5)]
    bytes_ = [roofs.byte_ops for roofs in found if roofs.byte_ops is not None]
    return Roofs(
        1,
        max(roofs.read_bytes_per_s for roofs in found),
        max(roofs.float_flops for roofs in found),
        max(bytes_, default=None),
        found[0].buffer_bytes,
        found[0].method,
        sum(roofs.seconds for roofs in found),
    )


def calibrate(machine: Machine) -> None:
    """Time the small nets, fit, and print the terms."""
    timed = []
    for name, layers, shape in small_nets():
        net, feeds = (
            drawn(name, layers, shape),
            {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)},
        )
        made = quantize_net(net, [feeds], Recipe(**PLAIN), threads=1)
        for kind, each, placement in (("float32", made.source, None), ("int8", made.net, made.placement)):
            session = Session(each, threads=1)
            seconds = shortest(lambda session=session, feeds=feeds: session.run(feeds))  # type: ignore[misc]  # bound now
            timed.append(Timed(f"{name} {kind}", work_of(made.source, feeds, placement), seconds))
            print(f"{timed[-1].name:32}{1e3 * seconds:10.4f} ms", flush=True)
    print(json.dumps(fit_rates(timed, machine), indent=4))


def held_out(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return a whole net and one input."""
    torch.manual_seed(0)
    nets: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
        "resnet20": (ResNet20, (1, 3, 32, 32)),
        "resnet18": (ResNet18, (1, 3, 224, 224)),
        "mobilenetv2": (MobileNetV2, (1, 3, 224, 224)),
        "mobilenetv2-quarter": (lambda: MobileNetV2(10, width=0.25, first=1), (1, 3, 32, 32)),
        "mobilenetv2-96": (MobileNetV2, (1, 3, 96, 96)),
        "perceptron": (perceptron, (1, 784)),
    }
    made, shape = nets[name]
    net = made() if name == "perceptron" else settled(made(), (2, *shape[1:]), batches=1)
    return net.eval(), torch.randn(shape)


def perceptron() -> torch.nn.Module:
    """Return three linear layers."""
    layers = (torch.nn.Linear(784, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU())
    return torch.nn.Sequential(*layers, torch.nn.Linear(512, 10))


def executorch_seconds(module: Any, feeds: dict[str, Any], name: str) -> float:
    """Lower, and return the shortest call."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pte"
        path.write_bytes(lower(exported(module, feeds), name).data)
        with Program(path, threads=1) as program:
            return min(program.times_ms(list(feeds.values()), seconds=2.0, processor=True)) / 1e3


def measured(net: Net, feeds: dict[str, Any], engine: str) -> Iterator[tuple[str, float, QuantizedNet | None]]:
    """Yield (format, seconds, the quantized net)."""
    target = {"executorch": "xnnpack"}.get(engine, engine)
    made = quantize_net(net, [feeds], Recipe(engine=target, **PLAIN), threads=1)
    if engine == "executorch":
        yield "fp32", executorch_seconds(float_module(simplified(net)), feeds, net.name), None
        yield "int8", executorch_seconds(xnnpack_module(made), feeds, net.name), made
        return
    for kind, each, quantized in (("fp32", made.source, None), ("int8", made.net, made)):
        session = Session(each, threads=1)
        yield kind, shortest(lambda session=session: session.run(feeds), 2.0), quantized  # type: ignore[misc]  # bound now


def compare(machine: Machine, nets: list[str], engines: list[str]) -> None:
    """Print each estimate beside what was measured."""
    print(f"{'net':22}{'engine':13}{'format':8}{'measured':>10}{'estimate':>10}{'interval':>18}{'ratio':>7}")
    ratios = []
    for name in nets:
        module, x = held_out(name)
        net, feeds = capture(module, x, name=name), {}
        feeds = {str(net.inputs[0].name): x.numpy()}
        plain = simplified(net)
        for engine in engines:
            for kind, seconds, made in measured(net, feeds, engine):
                source, placement = (plain, None) if made is None else (made.source, made.placement)
                found = estimate_latency(work_of(source, feeds, placement), machine, rates_of(engine))
                if isinstance(found, Unknown):
                    print(f"{name:22}{engine:13}{kind:8}{1e3 * seconds:10.3f}  {found}")
                    continue
                ratio = found.value / (1e3 * seconds)
                ratios.append(ratio)
                spread = f"{found.low:.3f} … {found.high:.3f}"
                inside = " " if found.low <= 1e3 * seconds <= found.high else "!"
                figures = f"{1e3 * seconds:10.3f}{found.value:10.3f}{spread:>18}{ratio:7.2f}{inside}"
                print(f"{name:22}{engine:13}{kind:8}{figures}", flush=True)
    within = sum(abs(ratio - 1) <= ASKED for ratio in ratios)
    print(
        f"{within} of {len(ratios)} estimates within ±{ASKED:.0%}; worst {max(map(abs, (r - 1 for r in ratios))):.0%}"
    )


def main() -> None:
    """Measure the roofs, then fit or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--nets", default="perceptron,resnet20,mobilenetv2-quarter,mobilenetv2-96,mobilenetv2,resnet18")
    parser.add_argument("--engines", default="onnxruntime,executorch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = of_roofs(best_roofs())
    print(
        {name: f"{rate / 1e9:.0f} G/s" for name, rate in machine.peaks.items()}, f"{machine.read_bytes_per_s:.3g} B/s"
    )
    if options.calibrate:
        calibrate(machine)
    else:
        compare(machine, options.nets.split(","), options.engines.split(","))


if __name__ == "__main__":
    main()
