"""Times of ops of any shape, learnt from times of some: what a calibration measured, carried to what it did not.

For each kind of op a time is first a sum of what the op does (arithmetic, elements moved, patches written out, groups
gone through …), each at a rate of its own that is never negative: a roofline of this very kernel. The logarithm of
measured over that is a linear trend in the logarithms of shapes, plus a radial basis function through what the trend
leaves over. Where too little was measured, it is the roofline of the device times the ratio usual there.

Reference: the prior times learnt correction is that of Zhang et al., nn-Meter, MobiSys 2021, with a roofline in the
place of no prior; non-negative least squares: Lawson and Hanson, Solving Least Squares Problems, 1974; radial basis
functions: Fasshauer, Meshfree approximation methods, 2007 (both `scipy`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.optimize import nnls

from sned.devices.company import Company, Way, lost_us
from sned.devices.demand import demand, size_of
from sned.devices.design import Shape
from sned.devices.grids import SET
from sned.devices.host import Wanted, grid, joined
from sned.devices.kernels import BoolArray, FloatArray
from sned.devices.layout import Family, Launch
from sned.devices.recipes import RECIPES
from sned.devices.roofline import Roofline
from sned.devices.sharing import unevenness
from sned.devices.table import Table

FEWEST = 12
"""Samples below which a kind of op gets its median ratio and nothing finer."""

NEIGHBOURS = 60
SMOOTHING = 0.1
RIDGE = 0.01
LEAST_US = 0.05
OUTLIERS = 0.05
"""Of the samples of a kind of op: so many at most are put down to other work on the machine."""

DISTURBED = 0.35
"""Logarithm of how much longer than the others say that is."""

DENSITY = (24, 24, 8)
"""Points on each axis of a table: by how many widths plans change, the last for more of them, too."""

ONE_ROW = "gemm of one row"

PAGE = 4096
"""Bytes that a way of the nearest cache holds, nearly everywhere: what lies as far apart shares the same few lines."""

LINE = 64
"""Bytes that come and go together."""


@dataclass(frozen=True, eq=False)
class Timed:
    """An op, and how long it took: microseconds, without what a session costs besides."""

    shape: Shape
    microseconds: float


@dataclass(frozen=True, eq=False)
class Fitted:
    """Times of ops learnt from samples.

    Attributes:
        roofline: what would be said without any.
        rates: for each kind of op microseconds for each of its `_terms`.
        models: for each kind, from features `[P, F]` to the logarithm of the ratio `[P]`.
        names: for each kind the texts among its statics, each a feature.
        counts: samples of each kind.
        usual: logarithm of the ratio where a kind has no samples.
    """

    roofline: Roofline
    rates: Mapping[str, FloatArray]
    models: Mapping[str, Callable[[FloatArray], FloatArray]]
    names: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, int]
    usual: float

    def op_us(self, family: Family, widths: Sequence[FloatArray]) -> FloatArray:
        """Microseconds of one op of a family at `P` widths, given as one `[P]` array an axis; its weights at hand."""
        times = np.asarray(_prior(self.roofline, family, widths) * np.exp(self.usual), np.float64)
        kinds = _kinds(family, widths)
        for kind in np.unique(kinds):
            known = self._known(str(kind), family)
            if known in self.models:
                of = kinds == kind
                own = [width[of] for width in widths]
                prior = _own_prior(_terms(self.roofline, family, own)[0], self.rates[known])
                ratio = self.models[known](_features(family, own, self.roofline.block, self.names[known]))
                times[of] = prior * np.exp(ratio)
        return times

    def _known(self, kind: str, family: Family) -> str:
        """The kind whose samples tell of another: its own, if there are any."""
        return kind if kind in self.models else family.recipe

    def untold(self, launches: Sequence[Launch]) -> tuple[str, ...]:
        """The kinds of launched ops of which there are too few samples to tell more than the usual ratio."""
        found: dict[str, None] = {}
        for launch in launches:
            # An op without widths is one op whatever the plan, which a single sample tells.
            fewest = FEWEST if launch.widths else 1
            kinds = np.unique(
                np.broadcast_to(_kinds(launch.family, launch.widths), launch.where.shape)[launch.where]
            )
            known = (self._known(str(kind), launch.family) for kind in kinds)
            found |= dict.fromkeys(kind for kind in known if self.counts.get(kind, 0) < fewest)
        return tuple(found)

    def tables(
        self, wanted: Sequence[Wanted], block: int, company: Mapping[Way, Company] | None = None
    ) -> list[Table]:
        """Tables of what is wanted, on grids as they would be measured on, with what ops lose in company."""

        @cache
        def table(want: Wanted) -> Table:
            free = sum(low < high for low, high in zip(want.low, want.high, strict=True))
            family, axes = want.family, grid(want, block, DENSITY[min(free, len(DENSITY) - 1)])
            points = np.array(list(product(*axes)), np.float64)
            columns = RECIPES[family.recipe].widths([points[:, at] for at in range(len(axes))], block)
            columns = columns if axes else ()
            times = self.op_us(family, columns)
            times += lost_us(family, columns, self.roofline.figures, {} if company is None else company)
            return Table(axes, times.reshape([len(axis) for axis in axes]))

        return [table(want) for want in joined(wanted)]


def fit(samples: Sequence[Timed], roofline: Roofline) -> Fitted:
    """Learn from samples.

    Args:
        samples: at least one.
        roofline: of the device; its block is that of the runtime that ran the samples.
    """
    rates, models, names, medians = {}, {}, {}, []
    by_kind = _by_kind(samples)
    for kind, places in by_kind.items():
        learnt = _learnt([samples[place] for place in places], roofline)
        rates[kind], names[kind] = learnt.rates, learnt.texts
        medians += learnt.over_roofline.tolist()
        kept = _undisturbed(learnt.rows, learnt.target)
        models[kind] = _model(learnt.rows[kept], learnt.target[kept])
    counts = {kind: len(places) for kind, places in by_kind.items()}
    return Fitted(roofline, rates, models, names, counts, float(np.median(medians)))


def excess(samples: Sequence[Timed], roofline: Roofline) -> FloatArray:
    """Logarithm of how much longer each of `N` samples took than the others of its kind say: `[N]`, 0 where these are
    too few to say."""
    longer = np.zeros(len(samples))
    for places in _by_kind(samples).values():
        learnt = _learnt([samples[place] for place in places], roofline)
        longer[places] = _longer(learnt.rows, learnt.target)
    return longer


def _by_kind(samples: Sequence[Timed]) -> dict[str, list[int]]:
    """Places of the samples of each kind."""
    places: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        kind = _kinds(sample.shape.family, sample.shape.columns)[0]
        places.setdefault(str(kind), []).append(place)
    return places


@dataclass(frozen=True, eq=False)
class _Learnt:
    """Of `N` samples of one kind: the rates, and what is left to learn from.

    Attributes:
        rates: microseconds for each of the `_terms`.
        texts: among the statics, each a feature.
        rows: features `[N, F]`.
        target: logarithm of what was measured over what the rates say `[N]`.
        over_roofline: the same over the roofline of the device.
    """

    rates: FloatArray
    texts: tuple[str, ...]
    rows: FloatArray
    target: FloatArray
    over_roofline: FloatArray


def _learnt(held: Sequence[Timed], roofline: Roofline) -> _Learnt:
    texts = sorted({str(v) for sample in held for _, v in sample.shape.family.statics if isinstance(v, str)})
    took = np.array([max(sample.microseconds, LEAST_US) for sample in held])
    each, told = zip(*(_terms(roofline, s.shape.family, s.shape.columns) for s in held), strict=True)
    terms = np.concatenate(each)
    rates = _rates(terms, took, told[0])
    rows = np.concatenate([_features(s.shape.family, s.shape.columns, roofline.block, texts) for s in held])
    target = np.log(took / _own_prior(terms, rates))
    return _Learnt(rates, tuple(texts), rows, target, np.log(took / terms[:, -1]))


def _kinds(family: Family, widths: Sequence[FloatArray]) -> NDArray[np.str_]:
    """What is learnt from apart, at `P` widths: the recipe, but a product of a single row is another kernel, which does
    little more than read its weights."""
    if family.recipe != "gemm":
        return np.full(len(widths[0]) if widths else 1, family.recipe)
    return np.where(widths[0] == 1, ONE_ROW, family.recipe)


def _rates(terms: FloatArray, took: FloatArray, told: FloatArray) -> FloatArray:
    """Microseconds for each term, at least 0, by relative error: `terms[N, K]` to `[K]`.

    A term that few samples have would answer for whatever these were disturbed by: it is what the profile `told`.
    Of few samples in all the roofline alone is reckoned with, which is the last.
    """
    if len(took) < FEWEST:
        only = np.zeros(terms.shape[1])
        only[-1] = float(np.median(took / terms[:, -1]))
        return only
    rates = told.copy()
    met = (terms > 0).sum(axis=0) >= FEWEST
    left = np.maximum(took - terms[:, ~met] @ told[~met], 0.0)
    scale = np.maximum(np.abs(terms[:, met]).max(axis=0), np.finfo(float).tiny)
    found, _ = nnls(terms[:, met] / scale / took[:, None], left / took)
    rates[met] = found / scale
    return rates


def _own_prior(terms: FloatArray, rates: FloatArray) -> FloatArray:
    return np.asarray(np.maximum(terms @ rates, LEAST_US))


def _terms(roofline: Roofline, family: Family, widths: Sequence[FloatArray]) -> tuple[FloatArray, FloatArray]:
    """`[P, K]`: what ops of a family do that may take time, last what the roofline of the device says of them; and
    `[K]`: microseconds that the profile tells of each, 0 where it tells none."""
    f = roofline.figures
    asked = demand(family, widths, f.tile)
    uneven = unevenness(family, widths, roofline.block, f.threads)
    shared = (asked.padded, asked.macs, asked.operations, asked.read, asked.written)
    work = [*(each * uneven for each in shared), asked.weights]
    beyond = [  # what a level of cache does not hold
        np.maximum(elements * f.bytes - size, 0.0)
        for elements in (asked.moved, asked.weights)
        for size in f.sizes
    ]
    own = [*_of_each_group(family, widths, asked.macs, f.tile), *_crowded(family, widths, roofline)]
    prior = _prior(roofline, family, widths)
    byte_us = 1 / f.bytes_per_us
    further = np.maximum(np.diff(byte_us), 0.0)
    crowded = [2 * LINE * byte_us[1]] if family.recipe == "reorder_output" else [0.0] * len(own)
    told = [0.0] * (1 + len(work)), further, further, crowded, [0.0]
    return np.stack([np.ones_like(prior), *work, *beyond, *own, prior], axis=1), np.concatenate(told)


def _crowded(family: Family, widths: Sequence[FloatArray], roofline: Roofline) -> list[FloatArray]:
    """Elements of a last block of channels that push each other out of the nearest cache, place after place, when
    images are put back from blocks into channels that lie whole pages apart: each brings a line in and out."""
    if family.recipe != "reorder_output":
        return []
    f = roofline.figures
    images, channels = widths
    places = float(str(family["inner"]))
    last = channels % roofline.block
    ways = f.sizes[0] / f.threads / PAGE if len(f.sizes) else np.inf
    return [images * last * places * ((last > ways) & (places * f.bytes % PAGE == 0))]


def _of_each_group(
    family: Family, widths: Sequence[FloatArray], macs: FloatArray, tile: int
) -> list[FloatArray]:
    """What a convolution of images as they are does for one group after the other: begin, go through the places, write
    patches out, place by place and row by row, read the image, and multiply vectors of places."""
    if family.recipe not in _GROUP_BY_GROUP:
        return []
    places, window, steps = (size_of(family, name) for name in ("output", "kernel", "stride"))
    vectors = np.ceil(places / tile) * tile / places  # places are computed by the vector
    lines = places / size_of(family, "output", last=True)
    unrolled = window if window * steps > 1 else 0.0
    groups, each = widths[0], widths[1]
    if family.recipe not in _ONE_GROUP:
        groups, each = groups * each, widths[2] if family.recipe == "plain_grouped" else np.ones_like(each)
    return [
        groups,
        groups * places,
        groups * each * unrolled * places,
        groups * each * window * lines,
        groups * each * places,
        macs * vectors,
    ]


_ONE_GROUP = frozenset({"plain_conv", "deconv"})
_GROUP_BY_GROUP = _ONE_GROUP | {"plain_depthwise", "plain_grouped"}


def _prior(roofline: Roofline, family: Family, widths: Sequence[FloatArray]) -> FloatArray:
    """The roofline, weights where the last run of the same op left them."""
    asked = demand(family, widths, roofline.figures.tile)
    own = asked.weights * roofline.figures.bytes
    return roofline.bounds(asked, family.recipe, own).work + roofline.figures.launch_us


def _features(family: Family, widths: Sequence[FloatArray], block: int, texts: Sequence[str]) -> FloatArray:
    """`[P, F]`: logarithms of widths and of what does not change, how full the last set is, and texts."""
    count = len(widths[0]) if widths else 1
    columns = [np.log2(np.maximum(width, 1.0)) for width in widths]
    for _, value in family.statics:
        if isinstance(value, tuple):
            columns.append(np.full(count, np.log2(max(1, value[-1]))))
        elif isinstance(value, int):
            columns.append(np.full(count, np.log2(max(1, value))))
    if block > 1 and family.recipe in _IN_SETS:
        blocks = np.ceil(widths[-1] / block)
        columns.append(2.0 * ((blocks - 1) % SET) / SET)
    held = {str(value) for _, value in family.statics}
    columns += [np.full(count, 2.0 if text in held else 0.0) for text in texts]
    return np.stack(columns, axis=1) if columns else np.zeros((count, 1))


def _undisturbed(rows: FloatArray, target: FloatArray) -> BoolArray:
    """Which samples to learn from: not those few that took far longer than the others say.

    Other work on the machine only ever adds to a time, and long ops cannot dodge it.
    """
    kept: BoolArray = np.ones(len(target), np.bool_)
    longer = _longer(rows, target)
    worst = np.argsort(-longer)[: int(OUTLIERS * len(target))]
    kept[worst[longer[worst] > DISTURBED]] = False
    return kept


def _longer(rows: FloatArray, target: FloatArray) -> FloatArray:
    """By how much the target of each sample exceeds what the other half of the samples says, if there are enough."""
    longer = np.zeros(len(target))
    if len(target) < 4 * FEWEST:
        return longer
    odd = np.arange(len(target)) % 2 == 1
    for half in (odd, ~odd):
        longer[~half] = target[~half] - _model(rows[half], target[half])(rows[~half])
    return longer


_IN_SETS = frozenset({"direct_conv", "blocked_conv", "blocked_grouped"})


def _model(rows: FloatArray, target: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """A ridge regression, and an interpolation of what it leaves over."""
    if len(target) < FEWEST:
        middle = float(np.median(target))
        return lambda features: np.full(len(features), middle)
    centre = rows.mean(axis=0)

    def trend(features: FloatArray) -> FloatArray:
        return np.concatenate([np.ones((len(features), 1)), features - centre], axis=1)

    basis = trend(rows)
    weights = np.linalg.solve(basis.T @ basis + RIDGE * len(rows) * np.eye(basis.shape[1]), basis.T @ target)
    _, unique = np.unique(rows, axis=0, return_index=True)
    left = RBFInterpolator(
        rows[unique], (target - basis @ weights)[unique], kernel="linear", smoothing=SMOOTHING, degree=0,
        neighbors=min(NEIGHBOURS, len(unique)),
    )  # fmt: skip

    def model(features: FloatArray) -> FloatArray:
        return np.asarray(trend(features) @ weights + left(features))

    return model
