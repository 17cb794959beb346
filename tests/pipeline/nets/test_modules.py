from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError, SchemeError
from tersor.pipeline.nets.modules import example_of, load_weights
from tersor.pipeline.nets.quantizing import NetHow, quantize_network

torch = pytest.importorskip("torch", reason="nets are torch modules: pip install 'tersor[torch]'")
nn = torch.nn


class Masked(nn.Module):  # type: ignore[misc, name-defined]  # nn is Any where torch is absent
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Any, mask: Any = None) -> Any:
        made = torch.relu(self.first(x))
        return self.last((made if mask is None else made * mask[..., None]).sum(1))


class Two(nn.Module):  # type: ignore[misc, name-defined]
    def forward(self, x: Any, y: Any) -> Any:
        return x + y


class Anything(nn.Module):  # type: ignore[misc, name-defined]
    def forward(self, *inputs: Any) -> Any:
        return sum(inputs)


class Tied(nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(32, 8), nn.Linear(8, 32, bias=False)
        self.head.weight = self.table.weight


def test_one_name_of_a_weight_that_has_two_is_enough(tmp_path: Path) -> None:
    """safetensors.torch.save_model keeps one, torch.save both."""
    files = pytest.importorskip("safetensors.torch", reason="the weights are saved with safetensors")
    net = Tied()
    files.save_model(net, tmp_path / "tied.safetensors")
    torch.save(net.state_dict(), tmp_path / "tied.pt")
    for name in ("tied.safetensors", "tied.pt"):
        made = Tied()
        load_weights(made, tmp_path / name)
        assert torch.equal(made.head.weight, net.head.weight)
        assert made.head.weight is made.table.weight


def test_a_weight_too_few_or_too_many_is_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "w.pt")
    torch.save(nn.Linear(3, 3, bias=False).state_dict(), tmp_path / "few.pt")
    with pytest.raises(FormatError, match=r"the weights of Linear\? no place for 'bias'$"):
        load_weights(nn.Linear(3, 3, bias=False), tmp_path / "w.pt")
    with pytest.raises(FormatError, match=r"the weights of Linear\? 'bias' is absent$"):
        load_weights(nn.Linear(3, 3), tmp_path / "few.pt")


X, Y = torch.zeros(3, 6, 8), torch.ones(3, 6)
CLASSES = torch.arange(3)
READ: dict[str, tuple[Any, Any, int]] = {
    "labels that forward cannot take": (nn.Identity(), (X, Y), 1),
    "two inputs": (Two(), (X, Y), 2),
    "two inputs, one of which looks like labels": (Two(), (X, CLASSES), 2),
    "two inputs and labels": (Two(), [X, Y, Y], 2),
    "classes beside an input that may be left out": (Masked(), (X, CLASSES), 1),
    "the same in numpy": (Masked(), (X.numpy(), CLASSES.numpy()), 1),
    "names beside it": (Masked(), (X, ["a", "b", "c"]), 1),
    "nothing beside it": (Masked(), (X, None), 1),
    "both inputs and classes": (Masked(), (X, Y, CLASSES), 2),
    "classes where anything is taken": (Anything(), (X, X, CLASSES), 2),
    "more than is taken": (nn.Identity(), (X, Y, Y), 3),
    "inputs in one": (Two(), ((X, Y), CLASSES), 2),
    "alone": (Masked(), X, 1),
    "alone in a tuple": (Masked(), (X,), 1),
}


@pytest.mark.parametrize("case", READ)
def test_what_forward_takes_of_a_batch(case: str) -> None:
    module, batch, count = READ[case]
    found = example_of(module, batch)
    found = found if isinstance(found, tuple) else (found,)
    given = batch if isinstance(batch, (tuple, list)) else (batch,)
    given = given[0] if isinstance(given[0], tuple) else given
    assert len(found) == count
    for ours, theirs in zip(found, given, strict=False):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("module", "batch"), [(Masked(), (X, Y)), (Masked(), (X, Y[:, 0])), (Anything(), (X, X))])
def test_what_may_be_an_input_or_a_label_is_asked_for(module: Any, batch: Any) -> None:
    with pytest.raises(SchemeError, match=r"takes 1 inputs or 2, .* is the last an input, or a label\? Give example_i"):
        example_of(module, batch)
    assert set(example_of(module, {"x": X, "mask": Y})) == {"x", "mask"}


def test_an_input_that_may_be_left_out_is_one_of_the_net_on_integers() -> None:
    torch.manual_seed(0)
    net = Masked().eval()
    x, mask = torch.randn(16, 6, 8), (torch.rand(16, 6) > 0.5).float()
    how = NetHow([{"x": x, "mask": mask}], threads=1, bench=False)
    result = quantize_network(net, "int8", how)
    wanted = net(x, mask).detach().numpy()
    for found in (result(x, mask), result(mask=mask, x=x)):
        assert np.square(found - wanted).sum() < 0.01 * np.square(wanted).sum()
    for inputs, named, words in (
        ((x, mask, mask), {}, "takes x, mask, in their order or by name, not 3 arrays"),
        ((), {"x": x, "mask": mask, "y": x}, "not x, mask, y"),
        ((x,), {"mask": mask}, "not 1 arrays, mask"),
    ):
        with pytest.raises(SchemeError, match=words):
            result(*inputs, **named)
    with pytest.raises(SchemeError, match="is the last an input, or a label"):
        quantize_network(net, "int8", NetHow([(x, mask)], threads=1, bench=False))
