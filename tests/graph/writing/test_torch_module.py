"""The module on integers computes what the file computes, holds integers, and is compiled to integer kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor.core.errors import SchemeError
from tersor.graph.ptq import QuantizedNet
from tersor.graph.writing.torch_module import integer_module

from ..conftest import encoder, images, mobilenet, quantized, resnet, run, sentences, sqnr

torch = pytest.importorskip("torch", reason="nets as modules: pip install 'tersor[torch]'")

KINDS: dict[str, dict[str, Any]] = {
    "static": {},
    "biased": {"biases": True, "weights": "gptq", "equalize": True},
    "four": {"bits": 4},
    "rows": {"activations": "float"},
    "groups": {"activations": "float", "bits": 4, "group": 16},
}


def made_of(net: str, **recipe: Any) -> tuple[QuantizedNet, str, Any]:
    """Return a net on integers, the name of its input, and what is fed to it."""
    if net == "encoder":
        return quantized(encoder().net(), sentences(8, batches=2), **recipe), "ids", sentences(4, seed=3)[0]["ids"]
    drawn = {"resnet": resnet, "mobilenet": mobilenet}[net](opset=20)
    return quantized(drawn.net(), images(4, 3, 16, 16), **recipe), "x", images(4, 3, 16, 16, seed=5)[0]


@pytest.mark.parametrize("net", ["encoder", "resnet", "mobilenet"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_module_computes_what_the_file_computes(net: str, kind: str) -> None:
    made, name, given = made_of(net, **KINDS[kind])
    module = integer_module(made)
    with torch.no_grad():
        ours = module(torch.from_numpy(given)).numpy()
    (output,) = made.net.outputs
    # a code at the very middle between two may fall to either side: the order of a float sum decides
    assert sqnr(run(made.net, {name: given})[str(output.name)], ours) > 55


@pytest.mark.parametrize("kind", ["static", "rows"])
def test_weights_are_held_as_integers_and_nothing_is_trained(kind: str) -> None:
    made, _, _ = made_of("encoder", **KINDS[kind])
    module = integer_module(made)
    state = module.state_dict()
    assert not any(parameter.requires_grad for parameter in module.parameters())
    held = {name for name, values in state.items() if values.dtype == torch.int8}
    assert len(held) == len(made.weights) + len(made.tables)
    large = {name for name, values in state.items() if values.dtype == torch.float32 and values.numel() > 256}
    assert large == ({"c11"} if kind == "rows" else set()), "a Conv stays in float where weights alone are small"


def test_a_module_is_saved_and_loaded(tmp_path: Any) -> None:
    made, _, given = made_of("resnet")
    module, x = integer_module(made), torch.from_numpy(given)
    with torch.no_grad():
        program = torch.export.export(module, (x,))
        torch.export.save(program, tmp_path / "net.pt2")
        again = torch.export.load(tmp_path / "net.pt2").module()
        np.testing.assert_array_equal(again(x).numpy(), module(x).numpy())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch itself
def test_inductor_finds_integer_kernels() -> None:
    from torch._inductor import config  # noqa: PLC0415 (takes seconds)
    from torch._inductor.utils import run_and_get_code  # noqa: PLC0415

    made, _, given = made_of("resnet")
    module, x = integer_module(made), torch.from_numpy(given)
    with torch.no_grad(), config.patch(freezing=True):
        fast = torch.compile(torch.export.export(module, (x,)).module())
        found, code = run_and_get_code(fast, x)
        assert sqnr(module(x).numpy(), found.numpy()) > 55
    told = "\n".join(code)
    assert told.count("onednn.qconv") >= 4, "convolutions run in oneDNN's integer kernels"
    made, _, given = made_of("encoder")
    module, x = integer_module(made), torch.from_numpy(given)
    with torch.no_grad(), config.patch(freezing=True):
        torch._dynamo.reset()
        found, code = run_and_get_code(torch.compile(module), x)
        assert sqnr(module(x).numpy(), found.numpy()) > 55
    told = "\n".join(code)
    assert told.count("onednn.qlinear") >= 3, "and products with weights"
    assert "extern_kernels.mm" not in told


def test_ranges_found_at_run_time_are_refused() -> None:
    with pytest.raises(SchemeError, match="for ONNX Runtime"):
        integer_module(made_of("encoder", activations="dynamic")[0])
