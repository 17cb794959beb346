"""From a net and data to an ONNX file on integers with its Card: what a user calls."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.core.card import Artefact, Card
from tersor.core.errors import QualityError, SchemeError
from tersor.core.evaluation import Evaluation
from tersor.evaluation.nets.accuracy import evaluate_net
from tersor.evaluation.nets.calling import is_module
from tersor.evaluation.nets.images import Preparation, open_images
from tersor.evaluation.nets.latency import race_nets
from tersor.files.atomic import check_file
from tersor.files.hashing import sha256
from tersor.graph.capture import capture
from tersor.graph.net import Net
from tersor.graph.observe import Progress, batches_of
from tersor.graph.ptq import QuantizedNet, Recipe, quantize_net
from tersor.graph.sensitivity.operators import Sensitivity, sensitivities
from tersor.graph.sensitivity.rebuild import FORMATS as OPERATOR_FORMATS
from tersor.graph.sensitivity.rebuild import roundings_of
from tersor.graph.sensitivity.search import Returned, return_to_float
from tersor.graph.sessions import Feeds, items_of, one
from tersor.graph.training.train import Trained
from tersor.graph.writing.torch_module import integer_module
from tersor.pipeline.nets.cards import card_of, notes_of, operator_errors
from tersor.pipeline.nets.data import calibration_batches, fitting
from tersor.pipeline.nets.judge import Judge, scores_by
from tersor.pipeline.nets.mobile.budget import Budget
from tersor.pipeline.nets.modules import example_of, load_weights
from tersor.pipeline.nets.naming import is_net_name, load_net
from tersor.pipeline.nets.training import Training, train_quantized
from tersor.pipeline.planning.plan_file import ONNX, PlanFile
from tersor.pipeline.steps.cards import save_card

if TYPE_CHECKING:
    from torch import fx

__all__ = [
    "FORMATS",
    "MIXED",
    "NetHow",
    "QuantizedResult",
    "check_output",
    "described",
    "few",
    "is_network",
    "labelled_data",
    "open_source",
    "quantize_network",
    "recipe_of",
    "with_data",
]

FORMATS = ("int8", "int4", "int3", "int2")
"""By the bits of the weights; activations have 8. With -g32 or another group: weights alone, a scale for each group."""
_FORMAT = re.compile(r"int([2348])(?:-g(\d+))?")
MIXED = "mixed"
"""What a Card calls the format of a net that was made by a plan."""
EXAMPLE = "net.onnx"
RANKED_ITEMS = 256
"""Of the calibration data, for the ranking of operators."""


@dataclass(frozen=True, slots=True)
class NetHow:
    """How to go about it.

    calibration     batches, or what `calibration_batches` opens
    example_inputs  of a torch net, None: the first calibration batch, without what forward does not take
    weights         a file to load into a torch net first
    recipe          how numbers are rounded; `bits` and `group` are set by the format
    target          whose rules say what runs on integers, None: the recipe's engine
    activations     "static", "dynamic" or "float", None: the recipe's
    data            labelled data to judge by: batches of (inputs, labels), an .npz or a folder of images
    max_drop        percentage points of accuracy that may be lost on `data` (without data: of agreement with the float
                    net on the calibration data); operators go back to float until it is met
    force           write the file even where `max_drop` is not met
    limit           calibration batches that are taken at most
    plan            a format for each operator, or the file that says so: `tersor plan` makes it; the format of the call
                    means nothing then
    preparation     how pixels of images become numbers
    training        train on integers after PTQ (QAT), None: PTQ alone; batches may be a path as `data` may
    bench           measure latency too
    budget          what a phone leaves, for `quantize_for_phone`
    """

    calibration: Any
    example_inputs: Any = None
    weights: Path | None = None
    recipe: Recipe = field(default_factory=Recipe)
    target: str | None = None
    activations: str | None = None
    data: Any = None
    max_drop: float | None = None
    force: bool = False
    limit: int | None = None
    plan: PlanFile | Path | None = None
    preparation: Preparation | None = None
    images: str = "images"
    labels: str = "labels"
    training: Training | None = None
    bench: bool = True
    budget: Budget | None = None
    threads: int = 0
    command: str = ""
    progress: Progress | None = None


@dataclass(frozen=True, eq=False)
class QuantizedResult:
    """A net on integers, with what it cost.

    returned  what went back to float, None where nothing had to be met
    trained   how training went, None where there was none
    read      files of the float net, which `save` writes over none of
    """

    quantized: QuantizedNet
    card: Card
    returned: Returned | None = None
    trained: Trained | None = None
    read: tuple[Path, ...] = ()

    @property
    def ranking(self) -> tuple[Sensitivity, ...]:
        """What each operator costs, the most sensitive first; empty where nobody had to know."""
        return self.returned.ranking if self.returned is not None else ()

    def save(self, path: str | Path) -> Card:
        """Write the ONNX file and its Card beside it; both appear whole. Returns the Card with the hash of the file."""
        target = Path(path)
        check_file(target, self.read, EXAMPLE)
        nbytes = self.quantized.net.save(target)
        card = replace(self.card, artefacts=(Artefact(target.name, nbytes, sha256(target)),))
        save_card(card, target)
        return card

    def to_torch(self) -> fx.GraphModule:
        """Return it as a module at rest with integer weights, which `torch.compile` lowers to integer kernels.

        Raises SchemeError for activations whose range is found at run time.
        """
        return integer_module(self.quantized)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run it in ONNX Runtime: the first output as an array. SchemeError for inputs that it has not."""
        names = [str(value.name) for value in self.quantized.net.inputs]
        if len(inputs) > len(names) or set(named) - set(names) or (inputs and named):
            given = ", ".join([f"{len(inputs)} arrays"] * bool(inputs) + list(named))
            raise SchemeError(
                f"{self.quantized.net.name} takes {', '.join(names)}, in their order or by name, not {given}"
            )
        return scores_by(self.quantized.net)(*inputs, **named)


def is_network(model: object) -> bool:
    """Whether `model` is a net with activations, not a language model: a module, an .onnx file, module:factory."""
    if isinstance(model, (str, Path)):
        return Path(str(model)).suffix == ".onnx" or is_net_name(str(model))
    return isinstance(model, Net) or (hasattr(model, "forward") and is_module(model))


def quantize_network(net: Any, format: str, how: NetHow) -> QuantizedResult:  # noqa: A002 (the option's word)
    """Return `net` on integers, and its Card.

    net     a torch module, a Net, an .onnx file, or "package.module:factory"
    format  "int8", or "int4" to "int2" for weights of fewer bits; "int4-g32" for weights alone, in groups
    Raises SchemeError, ShapeError and FormatError by name for data and options that do not fit, UnsupportedError for a
    net that cannot be exported, QualityError where `max_drop` cannot be met even in float (unless `force`).
    """
    began, plan = time.perf_counter(), _plan(how)
    name, recipe = (format, recipe_of(how, format)) if plan is None else (MIXED, _planned_recipe(how, plan))
    how = with_data(replace(how, calibration=_kept(how.calibration, how.limit)))
    source, files = open_source(net, how)
    how = replace(how, data=fitting(how.data, source))
    data = calibration_batches(how.calibration, source, how.preparation, images=how.images)
    batches = batches_of(source, data, how.limit)
    if plan is None:
        quantized = quantize_net(source, batches, recipe, threads=how.threads, progress=how.progress)
    else:
        quantized = _by_plan(source, batches, recipe, plan, how)
    plain, trained = quantized.source, None
    if how.training is not None:
        given = how.training
        kept = None if given.validation is None else labelled_data(given.validation, how, source)
        training = replace(given, data=labelled_data(given.data, how, source), validation=kept)
        quantized, trained = train_quantized(quantized, training, how.progress, original=source)
    returned = None if how.max_drop is None else _meeting(quantized, plain, batches, how, how.max_drop)
    quantized = quantized if returned is None else returned.net
    evaluations = tuple(_evaluations(quantized, plain, how))
    race = race_nets(quantized.net, plain, one(plain, batches[0]), threads=how.threads) if how.bench else None
    about: Any = {"began": began, "source_bytes": source.weight_bytes, "trained": trained}
    card = replace(
        card_of(quantized, files, name, described(how, batches), **about),
        layers=operator_errors(quantized, few(batches)),
        evaluations=evaluations,
        benchmarks=() if race is None else (race,),
        notes=notes_of(quantized, trained, returned, how.max_drop),
        command=how.command,
    )
    if plan is not None:  # so that it can be made again from its Card
        told = replace(card.plan.recipe, tensor_formats=tuple(f"{node}={kind}" for node, kind in plan.formats.items()))
        card = replace(card, plan=replace(card.plan, recipe=told))
    return QuantizedResult(quantized, card, returned, trained, tuple(_read_from(net, how.weights)))


def check_output(output: Path, net: Any, weights: Path | None) -> None:
    """Refuse, before any work, a file that cannot be made, or that is one of the float net's own."""
    check_file(output, _read_from(net, weights), EXAMPLE)


def _read_from(net: Any, weights: Path | None) -> Iterator[Path]:
    """Yield the files that a net is read from."""
    if isinstance(net, (str, Path)) and not is_net_name(str(net)):
        yield Path(net).expanduser()
    if weights is not None:
        yield weights


def _plan(how: NetHow) -> PlanFile | None:
    """Return the plan that was given; SchemeError for what does not go together with it."""
    if how.plan is None:
        return None
    against = {"max_drop": how.max_drop is not None, "training": how.training is not None}
    odd = [name for name, is_given in against.items() if is_given]
    if odd:
        raise SchemeError(f"a plan says what operators become: {odd[0]} would change that")
    return how.plan if isinstance(how.plan, PlanFile) else PlanFile.load(Path(how.plan).expanduser())


def _planned_recipe(how: NetHow, plan: PlanFile) -> Recipe:
    """Return the recipe with the engine and activations of a plan; SchemeError where others are asked for."""
    for name, asked, told in (
        ("engine", how.target, plan.engine),
        ("activations", how.activations, plan.activations),
    ):
        if asked is not None and told and asked != told:
            raise SchemeError(f"the plan was made for {name} {told}, not {asked}")
    target, activations = how.target or plan.engine or None, how.activations or plan.activations or None
    return recipe_of(replace(how, target=target, activations=activations), "int8")


def _by_plan(net: Net, batches: Sequence[Feeds], recipe: Recipe, plan: PlanFile, how: NetHow) -> QuantizedNet:
    """Return the net in the formats of a plan: the very one that its maker had."""
    kinds = {*plan.formats.values(), plan.file_type} if plan.where == ONNX else set()
    widths = {recipe.bits, *(bits for kind in kinds if (bits := OPERATOR_FORMATS[kind]) is not None)}
    roundings = roundings_of(net, batches, recipe, widths, threads=how.threads, progress=how.progress)
    names = [*roundings.finest.weights, *roundings.finest.tables]
    return roundings.mixed(plan.operator_formats(names, net.name))


def recipe_of(how: NetHow, name: str) -> Recipe:
    """Return the recipe with the bits of a format, and its groups, which are for weights alone."""
    recipe = how.recipe if how.target is None else replace(how.recipe, engine=how.target)
    recipe = recipe if how.activations is None else replace(recipe, activations=how.activations)
    found = _FORMAT.fullmatch(name)
    if found is None:
        raise SchemeError(f"nets are written as {', '.join(FORMATS)}, or int4-g32 in groups, not {name!r}")
    recipe = replace(recipe, bits=int(found[1]))
    if found[2] is not None:
        is_asked = how.activations is not None or recipe.activations != Recipe().activations
        recipe = replace(recipe, group=int(found[2]), activations=recipe.activations if is_asked else "float")
    recipe.precision  # noqa: B018 (says what does not go together)
    return recipe


def _kept(data: Any, limit: int | None = None) -> Any:
    """Return data that can be gone through again: what an iterator still gives, in a list."""
    return list(itertools.islice(data, limit)) if isinstance(data, Iterator) else data


def open_source(net: Any, how: NetHow) -> tuple[Net, dict[str, str]]:
    """Return the graph, and the files it came from with their hashes."""
    if isinstance(net, Net):
        return net, {}
    if isinstance(net, (str, Path)) and not is_net_name(str(net)):
        path = Path(net).expanduser()
        if how.weights is not None:
            raise SchemeError(f"--weights belong to a PyTorch net; {path.name} has its own")
        return Net.open(path), {path.name: sha256(path)}
    module: Any = load_net(str(net)) if isinstance(net, (str, Path)) else net
    if not is_module(module):
        raise SchemeError(f"{net} is no torch.nn.Module: only such a net can be captured")
    files = {}
    if how.weights is not None:
        load_weights(module, how.weights)
        files[how.weights.name] = sha256(how.weights)
    example = how.example_inputs if how.example_inputs is not None else example_of(module, _first(how))
    return capture(module, example), files


def _first(how: NetHow) -> Any:
    """Return the first calibration batch."""
    batches = calibration_batches(how.calibration, None, how.preparation, images=how.images)
    first = next(iter(batches), None)
    if first is None:
        raise SchemeError("the calibration data is empty: give at least one batch")
    return first


def labelled_data(data: Any, how: NetHow, net: Net | None = None) -> Iterable[Any]:
    """Return batches of (inputs, labels): those of a path, as `net` takes them, or what was given."""
    if not isinstance(data, (str, Path)):
        return data  # type: ignore[no-any-return]  # whatever yields batches
    images = open_images(Path(data).expanduser(), how.preparation, inputs=how.images, labels=how.labels)
    return fitting(images, net)  # type: ignore[no-any-return]  # images as they were


def with_data(how: NetHow) -> NetHow:
    """Return the same with its labelled data opened, once: what cannot be read is refused before minutes of work."""
    return how if how.data is None else replace(how, data=labelled_data(_kept(how.data), how))


def _meeting(quantized: QuantizedNet, plain: Net, batches: Sequence[Feeds], how: NetHow, max_drop: float) -> Returned:
    if not 0 <= max_drop <= 100:
        raise SchemeError(f"max_drop is in percentage points, from 0 to 100, got {max_drop}")
    is_labelled = how.data is not None
    judge = Judge.open(plain, how.data if is_labelled else batches, labelled=is_labelled)

    def rank() -> tuple[Sensitivity, ...]:
        return sensitivities(quantized, few(batches), progress=how.progress)

    returned = return_to_float(quantized, rank, judge.drop, max_drop)
    if not returned.meets and not how.force:
        raise QualityError(
            f"{quantized.source.name}: even with all weights in float {returned.drop:.2f} points are lost, not at most "
            f"{max_drop:g}: allow more, or write it all the same with --force"
        )
    return returned


def few(batches: Sequence[Feeds], most: int = RANKED_ITEMS) -> list[Feeds]:
    """Return the first batches, of about `most` items."""
    taken, items = [], 0
    for feeds in batches:
        taken.append(feeds)
        items += items_of(feeds)
        if items >= most:
            break
    return taken


def _evaluations(quantized: QuantizedNet, plain: Net, how: NetHow) -> Iterator[Evaluation]:
    """Yield the comparison with the float net on labelled data, where there is any that has classes."""
    if how.data is None:
        return
    pair = [scores_by(net, how.threads) for net in (quantized.net, plain)]
    found = evaluate_net(pair[0], against=pair[1], data=how.data)
    engines = {"subject": "onnxruntime, integers", "reference": "onnxruntime, float32"}
    yield replace(found, reference=f"{quantized.source.name} in float", engines=engines, command=how.command)


def described(how: NetHow, batches: Sequence[Feeds]) -> str:
    """Return the calibration data in words."""
    items = sum(map(items_of, batches))
    source = how.calibration
    name = Path(str(source)).name if isinstance(source, (str, Path)) else type(source).__name__
    return f"{name}: {items} items in {len(batches)} batches"
