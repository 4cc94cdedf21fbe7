"""What one op of a family asks of a machine, from its shapes alone: multiply-accumulates, operations, elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from sned.devices.kernels import FloatArray
from sned.devices.layout import Family

OPERATIONS = {
    "Sigmoid": 12.0, "Tanh": 12.0, "Gelu": 20.0, "QuickGelu": 14.0, "Erf": 14.0, "Exp": 8.0, "Softplus": 20.0,
    "Elu": 10.0, "Pow": 20.0, "Div": 4.0, "Sqrt": 4.0, "HardSwish": 8.0, "HardSigmoid": 2.0, "Clip": 2.0,
    "Softmax": 14.0, "LayerNormalization": 20.0, "SkipLayerNormalization": 60.0,
}  # fmt: skip
"""Vector operations an element; 1 for what is not named."""

SCALAR = 8.0
"""Operations an element of a window for what the runtime does one number at a time."""

MOVED = 4.0
"""Operations an element for what puts data into another order, and so cannot move whole vectors."""


@dataclass(frozen=True, eq=False)
class Demand:
    """What `P` ops of one family ask for, each field `[P]`.

    Attributes:
        macs: multiply-accumulates that the result needs.
        padded: multiply-accumulates that are done, channels rounded up to whole tiles.
        operations: other operations on elements.
        read: elements read, weights apart.
        written: elements written.
        weights: elements of the weights.
    """

    macs: FloatArray
    padded: FloatArray
    operations: FloatArray
    read: FloatArray
    written: FloatArray
    weights: FloatArray

    @property
    def moved(self) -> FloatArray:
        """Elements read and written, weights apart."""
        return self.read + self.written


def demand(family: Family, widths: Sequence[FloatArray], tile: int) -> Demand:
    """Say what ops of `family` ask for at `P` widths, given as one `[P]` array an axis.

    Args:
        family: the kind of op, and what no plan changes about it.
        widths: as in `Launch`.
        tile: channels that kernels compute together; a smaller last tile takes as long as a whole one.
    """
    return _DEMANDS[family.recipe](family, [np.asarray(width, np.float64) for width in widths], float(tile))


Rule = Callable[[Family, Sequence[FloatArray], float], Demand]


def _up(channels: FloatArray, tile: float) -> FloatArray:
    return np.asarray(np.ceil(channels / tile) * tile)


def size_of(family: Family, name: str, *, last: bool = False) -> float:
    """The product of what does not change along the axes of an image, or only the last."""
    value = family[name]
    assert isinstance(value, tuple)
    return float(value[-1] if last else prod(value))


def _number(family: Family, name: str) -> float:
    return float(str(family[name]))


def _activation(family: Family, elements: FloatArray) -> FloatArray:
    name = str(family["activation"])
    return elements * OPERATIONS.get(name, 1.0) if name else np.zeros_like(elements)


def _conv(*, blocked: bool, columns: bool = False) -> Rule:
    """A convolution of whole channels; `columns`: patches are written out first, and multiplied as a matrix."""

    def rule(family: Family, widths: Sequence[FloatArray], tile: float) -> Demand:
        n, ci, co = widths
        kernel, places = size_of(family, "kernel"), size_of(family, "output")
        written = n * co * places
        unrolled = n * ci * kernel * places if columns and kernel > 1 else np.zeros_like(n)
        return Demand(
            macs=written * ci * kernel,
            padded=n * places * kernel * _up(co, tile) * (_up(ci, tile) if blocked else ci),
            operations=_activation(family, written) + unrolled,
            read=n * ci * size_of(family, "spatial") + 2 * unrolled,
            written=written,
            weights=ci * co * kernel,
        )

    return rule


def _depthwise(family: Family, widths: Sequence[FloatArray], tile: float) -> Demand:
    n, c = widths
    kernel, places = size_of(family, "kernel"), size_of(family, "output")
    written = n * c * places
    return Demand(
        macs=written * kernel,
        padded=n * _up(c, tile) * places * kernel,
        operations=_activation(family, written),
        read=n * c * size_of(family, "spatial"),
        written=written,
        weights=c * kernel,
    )


def _grouped(family: Family, widths: Sequence[FloatArray], tile: float) -> Demand:
    n, groups, ci, co = widths
    kernel, places = size_of(family, "kernel"), size_of(family, "output")
    written = n * groups * co * places
    return Demand(
        macs=written * ci * kernel,
        padded=n * groups * _up(co, tile) * places * ci * kernel,
        operations=_activation(family, written),
        read=n * groups * ci * size_of(family, "spatial"),
        written=written,
        weights=groups * ci * co * kernel,
    )


def _deconv(family: Family, widths: Sequence[FloatArray], tile: float) -> Demand:
    n, ci, co = widths
    kernel, places = size_of(family, "kernel"), size_of(family, "spatial")
    return Demand(
        macs=n * ci * co * kernel * places,
        padded=n * ci * _up(co, tile) * kernel * places,
        operations=np.zeros_like(n),
        read=n * ci * places,
        written=n * co * size_of(family, "output"),
        weights=ci * co * kernel,
    )


def _gemm(family: Family, widths: Sequence[FloatArray], tile: float) -> Demand:
    del family
    m, k, n = widths
    return Demand(m * k * n, m * k * _up(n, tile), np.zeros_like(m), m * k, m * n, k * n)


def _matmul(family: Family, widths: Sequence[FloatArray], tile: float) -> Demand:
    del family
    b, m, k, n = widths
    nothing = np.zeros_like(b)
    return Demand(b * m * k * n, b * m * k * _up(n, tile), nothing, b * k * (m + n), b * m * n, nothing)


def _pool(operations: float) -> Rule:
    def rule(family: Family, widths: Sequence[FloatArray], tile: float) -> Demand:
        n, c = widths
        written = n * c * size_of(family, "output")
        looked_at = n * _up(c, tile) * size_of(family, "output") * size_of(family, "kernel")
        return _without_macs(operations * looked_at, n * c * size_of(family, "spatial"), written)

    return rule


def _reorder(family: Family, widths: Sequence[FloatArray], tile: float) -> Demand:
    n, c = widths
    plain, padded = n * c * _number(family, "inner"), n * _up(c, tile) * _number(family, "inner")
    return _without_macs(plain, plain, padded)


def _elementwise(family: Family, widths: Sequence[FloatArray], tile: float) -> Demand:
    del tile
    (elements,) = widths
    inputs = max(1.0, _number(family, "inputs"))
    return _without_macs(elements * OPERATIONS.get(str(family["op"]), 1.0), inputs * elements, elements)


def _norm(family: Family, widths: Sequence[FloatArray], tile: float) -> Demand:
    del tile
    elements = widths[0] * widths[1] * _number(family, "inner")
    return _without_macs(2 * elements, elements, elements)


def _rows(family: Family, widths: Sequence[FloatArray], tile: float) -> Demand:
    del tile
    elements = widths[0] * widths[1]
    return _without_macs(elements * OPERATIONS.get(str(family["op"]), 1.0), elements, elements)


def _reduce(family: Family, widths: Sequence[FloatArray], tile: float) -> Demand:
    del family, tile
    rows, columns = widths
    return _without_macs(rows * columns, rows * columns, rows)


def _moved(operations: float) -> Rule:
    def rule(family: Family, widths: Sequence[FloatArray], tile: float) -> Demand:
        del family, tile
        (elements,) = widths
        return _without_macs(operations * elements, elements, elements)

    return rule


def _copy(family: Family, widths: Sequence[FloatArray], tile: float) -> Demand:
    return _moved(MOVED if family["op"] == "Transpose" else 1.0)(family, widths, tile)


def _reshape(family: Family, widths: Sequence[FloatArray], tile: float) -> Demand:
    del family, widths, tile
    return _without_macs(*(np.zeros(1) for _ in range(3)))


def _without_macs(operations: FloatArray, read: FloatArray, written: FloatArray) -> Demand:
    nothing = np.zeros_like(written)
    return Demand(nothing, nothing, operations, read, written, nothing)


_DEMANDS: Mapping[str, Rule] = {
    "direct_conv": _conv(blocked=False),
    "blocked_conv": _conv(blocked=True),
    "plain_conv": _conv(blocked=False, columns=True),
    "blocked_depthwise": _depthwise,
    "plain_depthwise": _depthwise,
    "blocked_grouped": _grouped,
    "plain_grouped": _grouped,
    "deconv": _deconv,
    "gemm": _gemm,
    "matmul": _matmul,
    "blocked_pool": _pool(1.0),
    "plain_pool": _pool(SCALAR),
    "reorder_input": _reorder,
    "reorder_output": _reorder,
    "elementwise": _elementwise,
    "norm": _norm,
    "rows": _rows,
    "reduce": _reduce,
    "concat": _moved(1.0),
    "copy": _copy,
    "reshape": _reshape,
}
