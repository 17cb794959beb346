"""The loop: learns, distils, stops, keeps the best, and goes on where it was interrupted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersor.core.errors import FormatError, QualityError, SchemeError
from tersor.graph.net import Net
from tersor.graph.ptq import QuantizedNet
from tersor.graph.training import distillation
from tersor.graph.training.convert import convert
from tersor.graph.training.distillation import divergence
from tersor.graph.training.prepare import prepare
from tersor.graph.training.train import Epoch, Options, adam, best_so_far, cosine, restlessness, train

from ..conftest import Drawing, quantized, run
from .conftest import torch

cross_entropy = torch.nn.functional.cross_entropy


@pytest.fixture
def source() -> tuple[QuantizedNet, Net]:
    """Return a net of two convolutions with norms between, and dropout, rounded to three bits, and the one before."""
    d = Drawing(2)
    x = d.input("x", ["batch", 2, 6, 6])
    x = d.add("Relu", d.norm(d.conv(x, 2, 6, name="first"), 6))
    x = d.add("Dropout", x, d.constant(0.2))
    x = d.add("Relu", d.conv(x, 6, 6))
    d.add("Gemm", d.add("Flatten", d.add("GlobalAveragePool", x)), d.weight(3, 6), d.weight(3), transB=1, made="y")
    net = d.output("y", shape=["batch", 3]).net()
    images = np.random.default_rng(0).standard_normal((8, 2, 6, 6)).astype(np.float32)
    return quantized(net, [images], bits=3, equalize=False), net


@pytest.fixture
def prepared(source: tuple[QuantizedNet, Net]) -> Any:
    """Return the module to train."""
    return prepare(source[0], norms=source[1])


def shuffled() -> Any:
    """Return a loader that draws its order from torch's random numbers."""
    torch.manual_seed(5)
    x = torch.randn(32, 2, 6, 6)
    data = torch.utils.data.TensorDataset(x, (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 1).long())
    return torch.utils.data.DataLoader(data, 8, shuffle=True)


def options(**more: Any) -> Options:
    return Options(**{"loss": cross_entropy, "optimizer": adam(1e-2), **more})


def scores(*values: float) -> Callable[[Any], float]:
    """Return a validation that says one after the other."""
    told: Iterator[float] = iter(values)
    return lambda module: next(told)


def test_the_loss_falls(prepared: Any) -> None:
    found = train(prepared, shuffled(), 8, options())
    assert found.epochs[-1].loss < 0.9 * found.epochs[0].loss
    assert not prepared.training
    assert found.best == 7
    assert not found.stopped_early


def test_steps_are_trained_at_a_rate_of_their_own(prepared: Any) -> None:
    before = {name: parameter.clone() for name, parameter in prepared.named_parameters()}
    train(prepared, shuffled(), 1, options(optimizer=adam(1e-2, step_rate=0.0)))
    for name, parameter in prepared.named_parameters():
        assert torch.equal(parameter, before[name]) == name.endswith(".shift"), name


def test_rates_are_shares_of_each_tensors_size() -> None:
    module = torch.nn.Module()
    module.register_parameter("large", torch.nn.Parameter(torch.full((4,), -500.0)))
    module.register_parameter("zero", torch.nn.Parameter(torch.zeros(4)))
    module.encoder = torch.nn.Module()
    module.encoder.register_parameter("shift", torch.nn.Parameter(torch.full((4,), 20.0)))
    module.quantizers = torch.nn.Module()
    module.quantizers.register_parameter("shift", torch.nn.Parameter(torch.full((1,), 20.0)))
    rates = [group["lr"] for group in adam(0.01, step_rate=0.3)(module).param_groups]
    assert rates == pytest.approx([5.0, 0.01, 0.2, 0.3])


def test_a_teacher_teaches_without_targets(prepared: Any) -> None:
    teacher = copy.deepcopy(prepared)
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(16, 2, 6, 6)
    for distance in (divergence(2.0), torch.nn.MSELoss()):
        learner = copy.deepcopy(prepared)
        with torch.no_grad():
            before = float(distance(learner.eval()(x), teacher.eval()(x)))
        more = {"teacher": teacher, "distance": distance, "frozen_after": 0}
        train(learner, [x] * 4, 10, options(loss=None, **more))
        with torch.no_grad():
            assert float(distance(learner(x), teacher(x))) < 0.5 * before
    assert not teacher.training


def test_divergence_is_zero_for_equals_and_that_of_the_definition_else() -> None:
    made, taught = torch.randn(4, 5), torch.randn(4, 5)
    assert float(divergence(3.0)(taught, taught)) == pytest.approx(0, abs=1e-6)
    ours, theirs = torch.softmax(made / 3, -1), torch.softmax(taught / 3, -1)
    wanted = 9 * float((theirs * (theirs / ours).log()).sum(-1).mean())
    assert float(divergence(3.0)(made, taught)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_of_the_divergence_is_that_of_its_formula(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    monkeypatch.setattr(distillation, "AT_ONCE", 40)  # the 22 items go by threes, and one is left over
    generator = torch.Generator().manual_seed(2)
    made, taught = (torch.randn(11, 2, 11, generator=generator, dtype=torch.float32) for _ in range(2))
    made.requires_grad_()
    found = divergence(temperature)(made, taught.requires_grad_()) * 2.5
    (slope,) = torch.autograd.grad(found, [made])
    log_q, log_p = (torch.log_softmax(x.double() / temperature, -1) for x in (made, taught))
    wanted = 2.5 * temperature**2 * (log_p.exp() * (log_p - log_q)).sum() / 22
    (wanted_slope,) = torch.autograd.grad(wanted, [made])
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.allclose(slope, wanted_slope.float(), rtol=1e-4, atol=1e-7)
    halves = divergence(temperature)(made.to(torch.bfloat16), taught.to(torch.bfloat16))
    assert halves.item() == pytest.approx(wanted.item() / 2.5, rel=0.02)


def test_products_are_made_in_bfloat16_while_it_trains_and_never_where_it_is_judged(prepared: Any) -> None:
    seen: list[tuple[str, bool]] = []

    def told(name: str) -> Callable[..., None]:
        return lambda *_: seen.append((name, torch.is_autocast_enabled("cpu")))

    def judge(module: Any) -> float:
        module(torch.zeros(1, 2, 6, 6))
        return 0.0

    teacher = copy.deepcopy(prepared)
    prepared.register_forward_hook(told("learner"))
    teacher.register_forward_hook(told("teacher"))
    train(prepared, shuffled(), 1, options(teacher=teacher, validate=judge, products=torch.bfloat16))
    assert seen == [("learner", True), ("teacher", True)] * 4 + [("learner", False)]
    assert all(parameter.dtype == torch.float32 for parameter in prepared.parameters())


def test_the_best_epoch_is_kept(prepared: Any) -> None:
    seen: list[Any] = []
    told = scores(1, 3, 2)

    def validate(module: Any) -> float:
        seen.append(copy.deepcopy(module.state_dict()))
        assert not module.training
        return told(module)

    found = train(prepared, shuffled(), 3, options(validate=validate))
    assert found.best == 1
    assert all(torch.equal(value, seen[1][name]) for name, value in prepared.state_dict().items())


def test_training_ends_when_patience_does(prepared: Any) -> None:
    found = train(prepared, shuffled(), 10, options(validate=scores(1, 2, 2, 1, 9), patience=2))
    assert [epoch.score for epoch in found.epochs] == [1, 2, 2, 1]
    assert found.best == 1
    assert found.stopped_early


def test_a_score_that_is_no_number_is_never_the_best(prepared: Any) -> None:
    assert train(prepared, shuffled(), 3, options(validate=scores(float("nan"), 1, float("nan")))).best == 1


def test_norms_are_frozen_after_the_epochs_asked_for(prepared: Any) -> None:
    means: list[Any] = []
    name = next(name for name, buffer in prepared.named_buffers() if name.startswith("c") and buffer.shape == (6,))

    def watch(epoch: Epoch) -> None:
        means.append(prepared.get_buffer(name).clone())

    train(prepared, shuffled(), 4, options(frozen_after=2, progress=watch))
    assert not torch.equal(means[0], means[1])
    assert torch.equal(means[1], means[3])


@pytest.mark.parametrize("interrupted", [1, 3, 5])
def test_a_resumed_training_makes_the_same_weights(prepared: Any, tmp_path: Path, interrupted: int) -> None:
    twin, x = copy.deepcopy(prepared), torch.randn(4, 2, 6, 6)

    def validate(module: Any) -> float:
        return float(module(x).sum())

    class EndedError(Exception):
        pass

    def end(epoch: Epoch) -> None:
        if epoch.number == interrupted:
            raise EndedError

    wanted = train(prepared, shuffled(), 6, options(validate=validate))
    with pytest.raises(EndedError):
        train(twin, shuffled(), 6, options(validate=validate, folder=tmp_path, progress=end))
    torch.manual_seed(99)
    fresh = prepare_again(twin)
    loader = shuffled()
    torch.manual_seed(99)
    found = train(fresh, loader, 6, options(validate=validate, folder=tmp_path, resume=True))
    assert found == wanted
    for name, value in prepared.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name


def prepare_again(module: Any) -> Any:
    """Return the net as another process makes it: with numbers that the checkpoint has to replace."""
    fresh = copy.deepcopy(module)
    for node in fresh.graph.nodes:  # not frozen yet
        if node.kwargs.get("training") is False:
            mode = next(other for other in fresh.graph.nodes if other.target == "training")
            node.kwargs = {**node.kwargs, "training": mode}
    fresh.recompile()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    return fresh


def test_checkpoints_hold_only_tensors_and_numbers(prepared: Any, tmp_path: Path) -> None:
    train(prepared, shuffled(), 2, options(folder=tmp_path / "new"))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["best.pt", "last.pt"]
    found = torch.load(tmp_path / "new" / "best.pt", weights_only=True)
    prepared.load_state_dict(found["state"])


def test_a_checkpoint_of_another_net_is_refused(prepared: Any, tmp_path: Path) -> None:
    train(prepared, shuffled(), 1, options(folder=tmp_path))
    other = torch.fx.symbolic_trace(torch.nn.Linear(2, 2))
    with pytest.raises(FormatError, match="of another net"):
        train(other, shuffled(), 2, options(folder=tmp_path, resume=True))


@pytest.mark.parametrize("content", [b"", b"nothing of ours", b"\x80\x04cos\nsystem\n(S'true'\ntR."])
def test_a_broken_checkpoint_is_refused(prepared: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(FormatError, match="delete it to start anew"):
        train(prepared, shuffled(), 2, options(folder=tmp_path, resume=True))


def test_nothing_to_learn_from_is_refused(prepared: Any) -> None:
    with pytest.raises(SchemeError, match="give a loss, or a teacher"):
        train(prepared, shuffled(), 1, options(loss=None))


def test_data_without_batches_is_refused(prepared: Any) -> None:
    with pytest.raises(SchemeError, match="no batches"):
        train(prepared, iter(()), 1, options())


def test_a_loss_that_is_not_finite_ends_the_training(prepared: Any) -> None:
    with pytest.raises(QualityError, match="lower learning rate"):
        train(prepared, shuffled(), 1, options(loss=lambda made, _target: made.sum() * float("nan")))


def test_what_was_gained_before_a_loss_broke_is_on_disk(prepared: Any, tmp_path: Path) -> None:
    calls, states = [0], []

    def loss(made: Any, _target: Any) -> Any:
        calls[0] += 1
        return made.square().mean() * (float("nan") if calls[0] > 2 * len(shuffled()) else 1.0)

    def validate(module: Any) -> float:
        states.append({name: values.clone() for name, values in module.state_dict().items()})
        return -float(len(states))  # the first is the best

    given = options(loss=loss, validate=validate, folder=tmp_path, keep_best=False)
    assert best_so_far(prepared, tmp_path) is None
    with pytest.raises(QualityError):
        train(prepared, shuffled(), 5, given)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    found = best_so_far(prepared, tmp_path)
    assert found is not None
    assert (len(found.epochs), found.best, found.stopped_early) == (2, 0, True)
    assert all(torch.equal(values, states[0][name]) for name, values in prepared.state_dict().items())


def test_damping_grows_from_nothing_whatever_the_schedule(prepared: Any) -> None:
    weights: list[float] = []

    def restless(_module: Any) -> Any:
        probe = torch.ones((), requires_grad=True)
        probe.register_hook(lambda slope: weights.append(float(slope)))
        return lambda: probe * 1.0

    warm = options(damping=0.5, restless=restless, schedule=lambda done: min(10 * done, 1.0) * cosine(done))
    train(prepared, shuffled(), 3, warm)
    assert weights == sorted(weights)
    assert weights[0] == 0
    assert 0.3 < weights[-1] < 0.5


def test_the_learning_rate_falls_along_half_a_cosine(prepared: Any) -> None:
    rates: list[float] = []

    def watched(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        optimizer.register_step_post_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
        return optimizer

    train(prepared, shuffled(), 2, options(optimizer=watched))
    assert rates == pytest.approx([0.5 * cosine(done / 8) for done in range(8)])


def test_weights_settle_where_they_are_rounded_to(source: tuple[QuantizedNet, Net]) -> None:
    left = {}
    for damping in (0.0, 0.2):
        module = prepare(source[0])
        train(module, shuffled(), 12, options(damping=damping))
        left[damping] = float(restlessness(module)().detach())
    assert left[0.2] < 0.5 * left[0.0]


def test_restlessness_is_a_share_of_each_tensors_size(source: tuple[QuantizedNet, Net]) -> None:
    module = prepare(source[0])
    assert float(restlessness(module)().detach()) == pytest.approx(0, abs=1e-9)  # it starts from what was rounded
    # A quarter of a step up is rounded back, but for the highest code: that one is beyond the range.
    site, made = next(iter(source[0].weights.items()))
    values = made.values
    step = np.broadcast_to(made.quantizer.scale.reshape(-1, *[1] * (values.ndim - 1)), values.shape)
    moved = values + step / 4
    parameter = next(p for _, p in module.named_parameters() if p.shape == values.shape)
    with torch.no_grad():
        assert np.allclose(parameter.numpy(), values, atol=1e-6), site
        parameter.copy_(torch.from_numpy(moved))
    off = np.where(values > 2.5 * step, 0, step / 4)
    expected = np.square(off).sum() / np.square(moved).mean()
    assert float(restlessness(module)().detach()) == pytest.approx(expected, rel=1e-4)


def test_weights_that_are_not_trained_or_have_a_norm_beside_them_do_not_count(
    source: tuple[QuantizedNet, Net], prepared: Any
) -> None:
    module = prepare(source[0], trained=())
    assert float(restlessness(module)()) == 0
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    counted = restlessness(prepared)()
    counted.backward()  # type: ignore[no-untyped-call]
    with_norms = {name for name, one in prepared.named_parameters() if one.grad is not None}
    assert not any(name.startswith("first") for name in with_norms)
    assert with_norms


def test_data_may_depend_on_the_epoch(prepared: Any) -> None:
    asked: list[int] = []

    def batches(epoch: int) -> Any:
        asked.append(epoch)
        return [(torch.randn(4, 2, 6, 6), torch.zeros(4, dtype=torch.long))]

    train(prepared, batches, 3, options())
    assert asked == [0, 1, 2]


def test_a_plain_loop_trains_a_prepared_net_as_well(prepared: Any) -> None:
    optimizer = torch.optim.SGD(prepared.parameters(), 0.05, momentum=0.9)
    losses = []
    prepared.train()
    for _ in range(6):
        for x, target in shuffled():
            loss = cross_entropy(prepared(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_net_trains_on_cuda_and_converts_as_on_the_processor(prepared: Any, source: tuple[QuantizedNet, Net]) -> None:
    x = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        prepared.eval()(x), copy.deepcopy(prepared).eval().cuda()(x.cuda()).cpu(), atol=1e-4, rtol=1e-4
    )
    prepared.cuda()
    found = train(prepared, shuffled(), 8, options())
    assert found.epochs[-1].loss < 0.9 * found.epochs[0].loss
    made = prepared.eval()(x.cuda()).detach().cpu().numpy()
    outputs = run(convert(prepared, source[0]).net, {"x": x.numpy()})["y"]
    # A sum at the middle of two levels falls either way; nearly all outputs are within the order of the sum.
    assert (np.abs(outputs - made) <= 1e-4 * np.abs(made).max()).mean() > 0.9
