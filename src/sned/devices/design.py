"""The ops that a calibration times: shapes as networks have them, drawn so that any part of them covers the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from zlib import crc32

import numpy as np
from onnx import ModelProto

from sned.devices.grids import Point
from sned.devices.kernels import FloatArray, Static
from sned.devices.layout import MERGED_IN_PLAIN, Family
from sned.devices.recipes import RECIPES
from sned.devices.store import key_of

ELEMENTS = 1.7e6
"""Of an activation at most: 128 channels of 112 × 112."""

MACS = 6e8
"""Of an op at most: what takes longer leaves less time for others."""

MOST_WEIGHTS = 32e6
"""Of a product of a single row."""

SIDES = (112, 56, 28, 14, 7, 32, 16, 8, 4, 1)
_SIDE_SHARES = np.array([2, 4, 5, 6, 5, 2, 2, 2, 0.5, 1.5], np.float64)


@dataclass(frozen=True)
class Shape:
    """One op: its family, and its widths as the family's recipe has them."""

    family: Family
    widths: tuple[float, ...]

    @property
    def columns(self) -> tuple[FloatArray, ...]:
        """The widths as arrays of one."""
        return tuple(np.array([width]) for width in self.widths)

    def point(self, block: int) -> Point:
        """Its coordinates on the grid of its recipe."""
        return tuple(float(at[0]) for at in RECIPES[self.family.recipe].coordinates(self.columns, block))

    def key(self, block: int) -> str:
        """Its name in a store."""
        return key_of(self.family, self.point(block))

    def model(self, block: int) -> ModelProto:
        """An ONNX model that runs nothing else."""
        return RECIPES[self.family.recipe].model(self.family, self.point(block), block)


def design(block: int, count: int = 1000, seed: int = 0) -> list[Shape]:
    """Draw about `count` different ops, in an order of which any first part is much like the rest.

    Args:
        block: of the runtime's layout; where it is 1 there are no blocked kernels, and plain ones take their place.
        count: ops.
        seed: of the draw.
    """
    kinds = {kind: share for kind, share in _SHARES.items() if block > 1 or kind not in _BLOCKED}
    total = sum(kinds.values())
    drawn: list[Shape] = []
    for kind, share in kinds.items():
        wanted = max(1, round(count * share / total))
        rng = np.random.default_rng([seed, crc32(kind.encode())])  # of its own: more of one changes no other
        draw = _Draw(rng, block)
        shapes = (_DRAWS[kind](draw) for _ in range(3 * wanted))
        drawn += list(dict.fromkeys(shapes))[:wanted]
    return [drawn[place] for place in np.random.default_rng(seed).permutation(len(drawn))]


class _Draw:
    """Draws parts of shapes."""

    def __init__(self, rng: np.random.Generator, block: int) -> None:
        self._rng = rng
        self._apart = rng.spawn(1)[0]  # for what must not change the shapes that come after it
        self.block = block

    def one_of(self, *values: float, shares: FloatArray | None = None) -> int:
        """One of some values."""
        chances = None if shares is None else shares / shares.sum()
        return int(self._rng.choice(values, p=chances))

    def between(self, low: float, high: float) -> int:
        """A whole number, every octave as likely as another."""
        return max(1, round(float(np.exp(self._rng.uniform(np.log(low), np.log(max(low, high)))))))

    def channels(self, side: int, least: int = 4, most: int = 2048) -> int:
        """Channels of an image: a multiple of four more often than not, as networks have them."""
        drawn = self.between(least, min(most, ELEMENTS / side**2))
        return drawn if drawn < 8 or self._rng.random() < 0.2 else drawn // 4 * 4

    def side(self) -> int:
        """Of an image."""
        return self.one_of(*SIDES, shares=_SIDE_SHARES)

    def activation(self, recipe: str) -> str:
        """Of a convolution, more often none than not; one that clips at zero costs as much as none."""
        drawn = str(self._apart.choice(["", "", "", "", "HardSwish", "Clip", "Sigmoid"]))
        return "" if recipe.startswith("plain") and drawn not in MERGED_IN_PLAIN else drawn

    def text(self, *values: str) -> str:
        """One of some names."""
        return values[int(self._rng.integers(len(values)))]


def shape_of(recipe: str, widths: Sequence[float], /, **statics: Static) -> Shape:
    """An op of a recipe."""
    return Shape(_family(recipe, **statics), tuple(map(float, widths)))


def _family(recipe: str, **statics: Static) -> Family:
    return Family(recipe, tuple(sorted(statics.items())))


def sliding(
    kernel: int, stride: int, side: int, *, dilated: bool = True, padded: bool = True
) -> dict[str, Static]:
    """What is static about an op that slides a square kernel over a square image."""
    padding = kernel // 2 if padded and kernel % 2 else 0
    out = (side + 2 * padding - kernel) // stride + 1
    square: dict[str, Static] = {
        "kernel": (kernel, kernel), "stride": (stride, stride), "padding": (padding, padding),
        "spatial": (side, side), "output": (out, out),
    }  # fmt: skip
    return {**square, "dilation": (1, 1)} if dilated else square


def _places(window: Mapping[str, Static]) -> int:
    out = window["output"]
    assert isinstance(out, tuple)
    return prod(out)


def _conv(recipe: str) -> Callable[[_Draw], Shape]:
    def draw(d: _Draw) -> Shape:
        side = d.side()
        kernel = d.one_of(1, 3, 5, 7, shares=np.array([10.0, 10, 1, 0.5])) if side > 1 else 1
        window = sliding(kernel, d.one_of(1, 1, 1, 2) if side > 1 else 1, side)
        least = 4 if recipe == "plain_conv" else d.block
        ci = d.channels(side, least)
        co = d.between(
            least, min(2048, MACS / (ci * kernel**2 * _places(window)), ELEMENTS / _places(window))
        )
        widths = (1.0, float(ci), float(max(co, 2)))
        return Shape(_family(recipe, activation=d.activation(recipe), **window), widths)

    return draw


def _direct(d: _Draw) -> Shape:
    """The first layer of a network: a convolution, or the patches of a transformer."""
    if d.one_of(0, 0, 1):
        patch = d.one_of(4, 8, 14, 16, 32)
        window, most = sliding(patch, patch, 224, padded=False), 768
    else:
        window = sliding(d.one_of(3, 3, 3, 7, 5), d.one_of(1, 2, 2), d.one_of(224, 112, 64, 32, 192))
        most = 96
    widths = (1.0, float(d.one_of(1, 3, 3, 3)), float(d.between(8, most)))
    return Shape(_family("direct_conv", activation=d.activation("direct_conv"), **window), widths)


def _narrow(d: _Draw) -> Shape:
    """A convolution with fewer inputs than a block: of narrow networks, and in squeeze-and-excite of one place."""
    side = d.one_of(1, d.side())
    window = sliding(1 if side == 1 else d.one_of(1, 3), 1 if side == 1 else d.one_of(1, 1, 2), side)
    most = 1024 if side == 1 else 192
    widths = (1.0, float(d.between(2, d.block - 1)), float(d.between(8, most)))
    return Shape(_family("direct_conv", activation=d.activation("direct_conv"), **window), widths)


def _depthwise(recipe: str) -> Callable[[_Draw], Shape]:
    def draw(d: _Draw) -> Shape:
        side = max(4, d.side())
        window = sliding(d.one_of(3, 3, 5, 7), d.one_of(1, 1, 2), side)
        extra: dict[str, Static] = {"multiplier": 1} if recipe == "plain_depthwise" else {}
        widths = (1.0, float(d.channels(side, d.block)))
        return Shape(_family(recipe, activation=d.activation(recipe), **window, **extra), widths)

    return draw


def _grouped(recipe: str) -> Callable[[_Draw], Shape]:
    def draw(d: _Draw) -> Shape:
        side, groups = d.one_of(56, 28, 14, 7), d.one_of(2, 3, 4, 7, 8, 16, 32)
        window = sliding(d.one_of(1, 3, 3, 3), d.one_of(1, 1, 2), side)
        most = min(256, ELEMENTS / side**2 / groups)
        least = d.block if recipe == "blocked_grouped" else 2
        each = max(least, d.between(least, most) // least * least)
        return Shape(_family(recipe, activation="", **window), (1.0, float(groups), float(each), float(each)))

    return draw


def _deconv(d: _Draw) -> Shape:
    side, kernel = d.one_of(7, 14, 28), d.one_of(2, 4)
    statics: dict[str, Static] = {
        "kernel": (kernel, kernel), "stride": (2, 2), "padding": (kernel // 2 - 1,) * 2, "dilation": (1, 1),
        "spatial": (side, side), "output": (2 * side, 2 * side),
    }  # fmt: skip
    return Shape(_family("deconv", **statics), (1.0, float(d.between(8, 256)), float(d.between(8, 256))))


def _gemm(d: _Draw) -> Shape:
    m = d.one_of(1, 1, 1, 49, 50, 64, 128, 196, 197, 784, 3136)
    if m == 1 and d.one_of(0, 0, 1):  # behind the convolutions of an older classifier, larger than any cache
        elements = d.between(MOST_WEIGHTS / 16, MOST_WEIGHTS)
        k = d.between(1024, 32768)
        return Shape(_family("gemm"), (1.0, float(k), float(max(8, elements // k))))
    k = d.between(8, min(4096, ELEMENTS / m))
    n = d.between(8, min(4096, MACS / (m * k), ELEMENTS / m))
    return Shape(_family("gemm"), (float(m), float(k), float(n)))


def _matmul(d: _Draw) -> Shape:
    b, m, head = d.between(1, 256), d.one_of(49, 50, 64, 128, 197), d.between(8, 64)
    k, n = (head, m) if d.one_of(0, 1) else (m, head)
    return Shape(
        _family("matmul"), (float(max(1, min(b, int(MACS / (m * k * n))))), float(m), float(k), float(n))
    )


def _pool(recipe: str) -> Callable[[_Draw], Shape]:
    def draw(d: _Draw) -> Shape:
        side, kernel = d.one_of(112, 56, 28, 14), d.one_of(2, 3)
        window = sliding(kernel, d.one_of(1, 2, 2), side, dilated=False)
        channels = d.channels(side, d.block)
        if recipe == "blocked_pool":
            channels = max(1, channels // d.block) * d.block
        return Shape(_family(recipe, op=d.text("MaxPool", "AveragePool"), **window), (1.0, float(channels)))

    return draw


def _reorder(recipe: str) -> Callable[[_Draw], Shape]:
    def draw(d: _Draw) -> Shape:
        side = d.side()
        return Shape(_family(recipe, inner=side * side), (1.0, float(d.channels(side))))

    return draw


_UNARY = (
    "Relu",
    "Sigmoid",
    "Clip",
    "Tanh",
    "Gelu",
    "QuickGelu",
    "HardSigmoid",
    "HardSwish",
    "Erf",
    "Sqrt",
    "Abs",
)
_BROADCAST = ("Add", "Mul")
_BINARY = ("Add", "Add", "Mul", "Mul", "Sub", "Div")


def _elementwise(d: _Draw) -> Shape:
    inputs = d.one_of(1, 2)
    op = d.text(*(_BINARY if inputs == 2 else (*_UNARY, *_BROADCAST)))
    return Shape(_family("elementwise", op=op, inputs=inputs), (float(d.between(64, ELEMENTS)),))


def _copy(d: _Draw) -> Shape:
    return Shape(_family("copy", op=d.text("Transpose", "Slice")), (float(d.between(64, ELEMENTS)),))


def _concat(d: _Draw) -> Shape:
    return Shape(_family("concat", inputs=d.one_of(2, 2, 3, 4, 8)), (float(d.between(256, ELEMENTS)),))


def _norm(d: _Draw) -> Shape:
    side = d.side()
    return Shape(_family("norm", inner=side * side), (1.0, float(d.channels(side))))


def _rows(d: _Draw) -> Shape:
    columns = d.between(16, 2048)
    rows = d.between(1, min(40_000, ELEMENTS / columns))
    return Shape(
        _family("rows", op=d.text("Softmax", "LayerNormalization", "SkipLayerNormalization")),
        (float(rows), float(columns)),
    )


def _reduce(d: _Draw) -> Shape:
    columns = d.one_of(49, 196, 64, 256, 784, 3136, 384)
    return Shape(
        _family("reduce", op="ReduceMean"),
        (float(d.between(8, min(4096, ELEMENTS / columns))), float(columns)),
    )


def _reshape(d: _Draw) -> Shape:
    del d
    return Shape(_family("reshape", op="Reshape"), ())


_BLOCKED = frozenset(
    {
        "direct_conv",
        "blocked_conv",
        "blocked_depthwise",
        "blocked_grouped",
        "blocked_pool",
        "reorder_input",
        "reorder_output",
    }
)

_SHARES: Mapping[str, float] = {
    "blocked_conv": 34, "plain_conv": 12, "direct_conv": 10, "blocked_depthwise": 8, "plain_depthwise": 5,
    "blocked_grouped": 4, "plain_grouped": 9, "deconv": 0.5, "gemm": 9, "matmul": 6, "blocked_pool": 2,
    "plain_pool": 3, "reorder_input": 2.5, "reorder_output": 2.5, "elementwise": 9, "concat": 1.5, "norm": 1.5,
    "rows": 4, "reduce": 2, "copy": 3, "reshape": 0.1,
}  # fmt: skip
"""How much of a calibration each kind of op is given."""

_DRAWS: Mapping[str, Callable[[_Draw], Shape]] = {
    "blocked_conv": _conv("blocked_conv"),
    "plain_conv": _conv("plain_conv"),
    "direct_conv": lambda d: _direct(d) if d.one_of(0, 0, 1) else _narrow(d),
    "blocked_depthwise": _depthwise("blocked_depthwise"),
    "plain_depthwise": _depthwise("plain_depthwise"),
    "blocked_grouped": _grouped("blocked_grouped"),
    "plain_grouped": _grouped("plain_grouped"),
    "deconv": _deconv,
    "gemm": _gemm,
    "matmul": _matmul,
    "blocked_pool": _pool("blocked_pool"),
    "plain_pool": _pool("plain_pool"),
    "reorder_input": _reorder("reorder_input"),
    "reorder_output": _reorder("reorder_output"),
    "elementwise": _elementwise,
    "concat": _concat,
    "norm": _norm,
    "rows": _rows,
    "reduce": _reduce,
    "copy": _copy,
    "reshape": _reshape,
}
