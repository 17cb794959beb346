"""A matrix that is trained on its grid: places that round to codes, scales that move, and a gradient for both.

Source: Chen et al. 2024 (EfficientQAT), arXiv:2407.11062, for training weights together with the scales of their
groups, and for the slope of a scale: with codes held, what the file decodes to is linear in it.
Differs: any format with a lattice, those of GGUF too. What rounds to a code is held in steps of the grid, not in the
weight's own unit (as in LSQ, arXiv:1902.08153): there a scale has no slope at all while weights lie on their grid. A
group's step is what the file will decode, d · multiple with d as it is stored and the multiple a whole number:
gradients pass straight through the rounding of scales as through that of codes, so that what is trained on is bit for
bit what is written. Scales are base · exp(shift) and keep their sign.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tersor.core.errors import SchemeError
from tersor.core.format import Format, Lattice
from tersor.kernels.lazy import LazyModule
from tersor.kernels.places import slopes, values
from tersor.kernels.reference.places import is_inside, level_of, passed
from tersor.methods.solving.matrix import MatrixGrid
from tersor.methods.solving.scales import Scales

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch", "torch")

__all__ = ["TrainableMatrix", "check_trainable"]

INNER = 0.6
"""Share of the way from its code to its weight at which a place starts. Places that all start on codes would cross to
the next at about the same step where a gradient is common to them; those that start at the edge cross by noise. Codes
that a method chose although another is nearer start as they are: what error feedback won is in them."""
SETTLED = 0.5
"""Share of its way from its code that a place keeps when it is settled."""


def check_trainable(fmt: Format) -> None:
    """Raise SchemeError, naming the format, where its codes are not the points of a lattice."""
    block = torch.ones((1, fmt.block or 32), dtype=torch.float32)
    if fmt.fit(block).lattice() is None:
        raise SchemeError(
            f"qat trains codes that are evenly spaced or entries of a table; those of {fmt.name} are bits of a float: "
            "take best, or another format"
        )


@dataclass(frozen=True, eq=False)
class TrainableMatrix:
    """What is trained of a matrix [rows, columns], by name, and how it decodes.

    grid        the grid that it started from; what is not trained of it stays
    base        scales that it started from, None: the format's are not free, and codes alone are trained
    parameters  "place" [rows, columns], between codes, in steps from zero; with free scales "shift" [rows, blocks], and
                where the format has them "multiple" [rows, groups], "lower" [rows, blocks] (shift of the scale of
                minima) and "minimum" [rows, groups]
    """

    grid: MatrixGrid
    base: Scales | None
    parameters: dict[str, Tensor]

    @classmethod
    def of(cls, fmt: Format, data: Tensor, columns: int, near: Tensor | None = None) -> TrainableMatrix:
        """Start from packed rows, uint8 [rows, row_bytes]: `values` is then what they decode to.

        near  [rows, columns]: weights towards which places start from their codes, if these are the nearest; None: on
              their codes
        """
        grid, codes = MatrixGrid.unpacked(fmt, data, columns)
        if grid.lattice is None:
            check_trainable(fmt)
        assert grid.lattice is not None, "checked"
        base = Scales.of(grid)
        parameters = {"place": _places(grid.lattice, codes, near)}
        if base is not None:
            parameters["shift"] = torch.zeros_like(base.d)
            if base.limits is not None:
                parameters["multiple"] = base.multiples.clone()
            if base.minima is not None:
                parameters["lower"] = torch.zeros_like(base.dmin)
                if base.limits is not None:
                    parameters["minimum"] = base.minima.clone()
        return cls(grid, base, parameters)

    @property
    def spacing(self) -> float:
        """Mean distance of neighbouring codes in the unit of places: 1 unless codes are entries of a table."""
        lattice = self.grid.lattice
        assert lattice is not None, "checked when it was made"
        if lattice.table is None:
            return 1.0
        return float((lattice.table.max() - lattice.table.min()) / max(len(torch.unique(lattice.table)) - 1, 1))

    def values(self) -> Tensor:
        """Return what the file will decode to, float32 [rows, columns], with gradients for all parameters."""
        made: Tensor = _rounding().apply(self._grouped(), *self._lattice())
        return made.reshape(self.grid.rows, self.grid.columns)

    def off_grid(self) -> Tensor:
        """Return how far each place within the range is from its code, with a gradient for it alone."""
        place = self._grouped()
        with torch.no_grad():
            _, _, zero, levels, table = self._lattice()
            level, _, inside = _rounded(place, zero, levels, table)
        return ((place - level) * inside).reshape(self.grid.rows, self.grid.columns)

    def settle(self) -> None:
        """Move parameters to where noise does not change what they round to at once; `values` stay, bit for bit.

        Training ends with places and multiples at all distances from the next code or whole number. Where it begins
        anew, with rates at their highest, those that are close would all cross in the first steps, for nothing.
        """
        with torch.no_grad():
            place = self._grouped()
            level, _, inside = _rounded(place, *self._lattice()[2:])
            place.copy_(level + torch.where(inside, SETTLED * (place - level), 0.0))
            if self.base is not None and self.base.limits is not None:
                for what in {"multiple", "minimum"} & self.parameters.keys():
                    self.parameters[what].copy_(_whole(self.parameters[what], self.base.limits))

    def packed(self) -> Tensor:
        """Return the rows as they are stored, uint8 [rows, row_bytes]; they decode to `values`, bit for bit."""
        with torch.no_grad():
            _, codes, _ = _rounded(self._grouped(), *self._lattice()[2:])
            codes = codes.reshape(self.grid.rows, self.grid.columns).to(torch.int32)
            if self.base is None:
                return self.grid.pack(codes)
            d, dmin, multiples, minima = self._scales(self.base)
            scales = replace(self.base, d=d, dmin=dmin, multiples=multiples, minima=minima)
            return replace(self.grid, grid=scales.grid()).pack(codes)

    def _grouped(self) -> Tensor:
        """Return places [groups, width], views of the parameter."""
        place = self.parameters["place"]
        groups = self.grid.lattice.step.shape[1] if self.grid.lattice is not None else 1
        return place.reshape(-1, self.grid.width // groups)

    def _lattice(self) -> tuple[Tensor, Tensor, Tensor, int, Tensor | None]:
        """Step, offset and zero of every group, [groups, 1], with gradients."""
        lattice = self.grid.lattice
        assert lattice is not None, "checked when it was made"
        if self.base is None:
            parts = lattice.step, lattice.offset
        else:
            d, dmin, multiples, minima = self._scales(self.base)
            blocks, groups = lattice.step.shape
            parts = d.reshape(-1, 1) * multiples.reshape(blocks, groups), lattice.offset
            if minima is not None:
                parts = parts[0], dmin.reshape(-1, 1) * minima.reshape(blocks, groups)
        step, offset, zero = (part.reshape(-1, 1) for part in (*parts, lattice.zero))
        return step, offset, zero, lattice.levels, lattice.table

    def _scales(self, base: Scales) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """d, dmin, multiples and minima as they are stored, with gradients."""
        p = self.parameters
        d, dmin = self._stored(base.d, p["shift"]), base.dmin
        multiples, minima = base.multiples, base.minima
        if "lower" in p:
            dmin = self._stored(base.dmin, p["lower"])
        if base.limits is not None:
            multiples = _whole(p["multiple"], base.limits)
            minima = None if minima is None else _whole(p["minimum"], base.limits)
        return d, dmin, multiples, minima

    def _stored(self, base: Tensor, shift: Tensor) -> Tensor:
        wanted = base * torch.exp(shift)
        with torch.no_grad():
            found = self.base.stored(wanted, base) if self.base is not None else base
        return _straight(wanted, found)


def _straight(wanted: Tensor, found: Tensor) -> Tensor:
    """`found`, bit for bit, with the gradient of `wanted`."""
    made: Tensor = _replacing().apply(wanted, found)
    return made


def _whole(wanted: Tensor, limits: tuple[int, int]) -> Tensor:
    inside = wanted.clamp(*limits)
    return _straight(inside, inside.detach().round())


@functools.cache
def _replacing() -> Any:
    """Return the autograd function whose value is its second argument and whose gradient is for its first."""

    class Replacing(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, _wanted: Tensor, found: Tensor) -> Tensor:
            return found.view_as(found)

        @staticmethod
        def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
            return gradient, None

    return Replacing


def _places(lattice: Lattice, codes: Tensor, near: Tensor | None) -> Tensor:
    """Where places start: on the codes [rows, columns], or between them and the weights."""
    blocks, groups = lattice.step.shape
    zero, table = lattice.zero[..., None], lattice.table
    grouped = codes.reshape(blocks, groups, -1)
    level = (grouped - zero).to(torch.float32) if table is None else table[grouped.long()]
    if near is not None:
        step, offset = lattice.step[..., None], lattice.offset[..., None]
        away = ((near.reshape(level.shape) + offset) / step).nan_to_num(0.0, 0.0, 0.0) - level
        below: Tensor | float = 0.5
        above: Tensor | float = 0.5
        if table is not None:
            ends = torch.unique(table)
            gaps = torch.nn.functional.pad(ends.diff() / 2, (1, 1), value=0.5)
            at = torch.searchsorted(ends, level.contiguous())
            below, above = gaps[at], gaps[at + 1]
        level = level + torch.where((away > -below) & (away < above) & (step != 0), INNER * away, 0.0)
    return level.reshape(codes.shape).clone()


def _rounded(place: Tensor, zero: Tensor, levels: int, table: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Levels (in steps, from zero), codes, and whether each place is within the range."""
    if table is None:
        level = level_of(place, zero, levels)
        return level, level + zero, is_inside(place, zero, levels)
    order = table.argsort(stable=True)
    ascending = table[order]
    edges = (ascending[1:] + ascending[:-1]) / 2
    codes = order[torch.bucketize(place, edges)]
    return table[codes], codes, (place >= ascending[0] - 0.5) & (place <= ascending[-1] + 0.5)


@functools.cache
def _rounding() -> Any:
    """Return the autograd function; torch is loaded by now."""

    class Rounding(torch.autograd.Function):
        @staticmethod
        def forward(  # noqa: PLR0917 (autograd has no keywords)
            ctx: Any, place: Tensor, step: Tensor, offset: Tensor, zero: Tensor, levels: int, table: Tensor | None
        ) -> Tensor:
            ctx.levels = levels if table is None else None
            if table is None:
                ctx.save_for_backward(place, step, zero)
                return values(place, step, offset, zero, levels)
            level, _, inside = _rounded(place, zero, levels, table)
            ctx.save_for_backward(level, inside, step)
            return level * step - offset

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
            if ctx.levels is not None:
                place, step, zero = ctx.saved_tensors
                return *slopes(gradient, place, step, zero, ctx.levels), None, None, None
            return *passed(gradient, *ctx.saved_tensors), None, None, None

    return Rounding
