from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError, SchemeError, TersorError, UnsupportedError
from tersor.graph.capture import capture
from tersor.graph.net import Net

from .conftest import operators, run

torch = pytest.importorskip("torch", reason="captures nets of torch: pip install 'tersor[torch]'")
pytest.importorskip("onnxscript", reason="torch exports with it: pip install 'tersor[onnx]'")
nn = torch.nn


class Called(nn.Module):  # type: ignore[misc, name-defined]  # nn is Any where torch is absent
    """A net whose forward is a function."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


class Pair(nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, left: Any, right: Any) -> dict[str, Any]:
        return {"product": self.linear(left) @ right.transpose(1, 2), "sum": left.sum((1, 2)) - right.mean((1, 2))}


def convolutional() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Hardswish(), nn.MaxPool2d(2), nn.Dropout(0.5),
        nn.Conv2d(6, 6, 3, groups=2), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def attention() -> Any:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)


@pytest.mark.parametrize(
    ("make", "shape", "example"),
    [
        (convolutional, (3, 12, 12), 1),
        (attention, (5, 8), 1),
        pytest.param(convolutional, (3, 12, 12), 4, marks=pytest.mark.slow),
        pytest.param(attention, (5, 8), 4, marks=pytest.mark.slow),
    ],
)
def test_a_captured_net_computes_what_the_net_does_on_other_inputs_and_batches(
    make: Callable[[], Any], shape: tuple[int, ...], example: int
) -> None:
    net = make().eval()
    captured = capture(net, torch.randn(example, *shape))
    for batch in (1, 3, 8):
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            wanted = net(x).numpy()
        (found,) = run(captured, {str(captured.inputs[0].name): x.numpy()}).values()
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_net_is_captured_at_rest_and_every_training_flag_stays() -> None:
    net = convolutional().train()
    net[1].eval()  # a batch norm that is frozen, as in fine-tuning
    flags = [module.training for module in net.modules()]
    means = net[1].running_mean.clone()
    captured = capture(net, torch.randn(2, 3, 12, 12), name="mine")
    assert [module.training for module in net.modules()] == flags
    assert torch.equal(net[1].running_mean, means)
    assert not {"Dropout", "BatchNormalization", "RandomUniformLike"} & set(operators(captured))
    assert captured.name == "mine"


def test_keywords_are_matched_by_name_in_any_order_and_mappings_come_back() -> None:
    torch.manual_seed(0)
    net = Pair().eval()
    left, right = torch.randn(2, 4, 3), torch.randn(2, 5, 3)
    captured = capture(net, {"right": right, "left": left})
    assert {str(value.name) for value in captured.inputs} == {"left", "right"}
    wanted = net(left[:1], right[:1])
    found = run(captured, {"left": left[:1].numpy(), "right": right[:1].numpy()})
    for ours, theirs in zip(found.values(), wanted.values(), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)


def test_an_input_that_forward_ignores_stays_an_input() -> None:
    net = Called(lambda self, x, y: self.linear(y), linear=nn.Linear(3, 2))
    captured = capture(net, (torch.randn(2, 3), torch.randn(2, 3)))
    assert len(captured.inputs) == 2


def test_a_batch_that_cannot_be_free_is_fixed_to_that_of_the_example_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = Called(lambda self, x: self.linear(x.reshape(1, 12)), linear=nn.Linear(12, 2))
    with caplog.at_level(logging.WARNING):
        captured = capture(net, torch.randn(1, 12))
    assert "fixed to 1" in caplog.text
    assert list(captured.inputs[0].shape or ()) == [1, 12]


class Wrapped(nn.Module):  # type: ignore[misc, name-defined]
    """Hands on whatever it is called with, as wrappers of nets do."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.net(*inputs, **named)


def test_the_batch_of_a_net_that_hands_on_its_inputs_is_free() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(2, 4, 3), torch.randn(2, 5, 3)
    net = Wrapped(Pair().eval())
    captured = capture(net, (left, right))
    feeds = {str(value.name): x.repeat(4, 1, 1) for value, x in zip(captured.inputs, (left, right), strict=True)}
    found = run(captured, {name: x.numpy() for name, x in feeds.items()})
    for ours, theirs in zip(found.values(), net(*feeds.values()).values(), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)


def branching(self: Any, x: Any) -> Any:
    return x if x.sum() > 0 else -x


REFUSED: dict[str, tuple[Callable[[], Any], Any, type[Exception], str]] = {
    "a branch": (lambda: Called(branching), lambda: torch.ones(2, 3), UnsupportedError, "cannot be exported"),
    "random numbers": (
        lambda: Called(lambda self, x: x + torch.rand_like(x)), lambda: torch.randn(2, 3), FormatError, "random",
    ),
    "dropout that never rests": (
        lambda: Called(lambda self, x: nn.functional.dropout(x, 0.5, training=True)), lambda: torch.randn(9, 30),
        FormatError, "random",
    ),
    "no net": (lambda: print, lambda: torch.randn(2, 3), SchemeError, "torch.nn.Module"),
    "an array": (lambda: nn.Linear(3, 3), lambda: np.zeros((2, 3)), SchemeError, "are tensors, got ndarray"),
    "an array among tensors": (lambda: nn.Linear(3, 3), lambda: (torch.randn(2, 3), 3), SchemeError, "got int"),
    "no input": (lambda: nn.Linear(3, 3), tuple, SchemeError, "no example inputs"),
    "an empty input": (lambda: nn.Linear(3, 3), lambda: torch.zeros(0, 3), SchemeError, "batch of at least one"),
    "a scalar": (lambda: nn.Linear(3, 3), lambda: torch.zeros(()), SchemeError, "batch of at least one"),
    "a shape that does not fit": (lambda: nn.Linear(3, 3), lambda: torch.zeros(2, 4), SchemeError, r"\[2, 4\]"),
    "bfloat16": (
        lambda: nn.Linear(3, 3).bfloat16(), lambda: torch.randn(2, 3).bfloat16(), UnsupportedError, "give net.float()",
    ),
    "nothing but NaN": (
        lambda: Called(lambda self, x: x * torch.inf - x * torch.inf), lambda: torch.ones(2, 3), FormatError,
        "by nan of its",
    ),
    "NaN": (lambda: nn.Linear(3, 3), lambda: torch.full((2, 3), torch.nan), FormatError, "nan at"),
    "nothing that is returned": (
        lambda: Called(lambda self, x: type("Result", (), {"logits": x})()), lambda: torch.randn(2, 3),
        UnsupportedError, "cannot be exported",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_captured_is_refused_by_message(case: str) -> None:
    make, example, error, message = REFUSED[case]
    net = make()
    flags = [module.training for module in net.modules()] if isinstance(net, nn.Module) else []
    with pytest.raises(error, match=message):
        capture(net, example())
    assert flags == ([module.training for module in net.modules()] if flags else [])


def test_outputs_may_be_nested_and_of_whole_numbers() -> None:
    net = Called(lambda self, x: (x * 2, [x.argmax(1), x > 0]))
    captured = capture(net, torch.randn(3, 4))
    made = list(run(captured, {str(captured.inputs[0].name): np.eye(3, 4, dtype=np.float32)}).values())
    assert [array.dtype.kind for array in made] == ["f", "i", "b"]
    assert isinstance(captured, Net)


def test_scores_that_are_masked_by_infinities_are_the_same() -> None:
    mask = torch.tensor([False, True, False])
    net = Called(lambda self, x: self.linear(x).masked_fill(mask, -torch.inf), linear=nn.Linear(4, 3))
    x = torch.randn(2, 4)
    captured = capture(net, x)
    (found,) = run(captured, {str(captured.inputs[0].name): x.numpy()}).values()
    assert (found[:, 1] == -np.inf).all()
    assert np.isfinite(found[:, ::2]).all()


def test_a_tensor_that_is_returned_twice_is_an_output_twice_or_refused() -> None:
    def forward(self: Any, x: Any) -> Any:
        y = x * 2
        return y, y

    try:
        captured = capture(Called(forward), torch.randn(3, 4))
    except TersorError as error:
        assert "different ones" in str(error)  # noqa: PT017 (either is sound)
    else:
        assert len(captured.outputs) == 2


def test_operators_are_called_after_modules_and_paths_stay_at_home() -> None:
    class Inner(torch.nn.Module):  # type: ignore[name-defined,misc]  # importorskip gives no types
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 3, padding=1, bias=False)
            self.norm = torch.nn.BatchNorm2d(3)

        def forward(self, x: Any) -> Any:
            return torch.relu(x + self.norm(self.conv(x)))

    net = torch.nn.Sequential(Inner(), Inner(), torch.nn.Flatten(), torch.nn.Linear(48, 2)).eval()
    captured = capture(net, torch.zeros(2, 3, 4, 4))
    names = [str(node.name) for node in captured.nodes]
    assert names == ["0.conv", "0.add", "0.relu", "1.conv", "1.add", "1.relu", "2.reshape", "3"]
    data = captured.to_bytes()
    assert b".py" not in data
    assert b"stack_trace" not in data
