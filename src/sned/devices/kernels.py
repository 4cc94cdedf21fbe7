"""What a runtime has to run for a network, with every dimension as an expression in what a plan keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sned.graph.ir import Term

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Size = tuple[Term, ...]
Static = int | str | tuple[int, ...]


@dataclass(frozen=True)
class Extent:
    """`factor * product of sizes`: a dimension, a number of elements or of MACs under any plan.

    `sizes` are indices into `Workload.sizes`; what does not depend on the plan is in `factor`.
    """

    factor: float = 1.0
    sizes: tuple[int, ...] = ()

    def __mul__(self, other: Extent | float) -> Extent:
        if isinstance(other, Extent):
            return Extent(self.factor * other.factor, self.sizes + other.sizes)
        return Extent(self.factor * other, self.sizes)

    def at(self, sizes: FloatArray) -> FloatArray:
        """Evaluate for `P` plans: `sizes[P, S]` from `Workload.sizes_of` to `[P]`."""
        value = np.full(len(sizes), self.factor)
        for index in self.sizes:
            value *= sizes[:, index]
        return value


NOTHING = Extent(0.0)


@dataclass(frozen=True)
class Value:
    """A tensor that one kernel writes and others read: `[batch, channels, *inner]`, of `rank` axes."""

    batch: Extent
    channels: Extent
    inner: tuple[int, ...]
    rank: int
    shape: tuple[int, ...]

    @property
    def elements(self) -> Extent:
        """How many elements it has."""
        return self.batch * self.channels * float(np.prod(self.inner, initial=1.0))


@dataclass(frozen=True)
class Kernel:
    """One step of a runtime, with what any runtime folds into it: a BatchNorm after a convolution, an
    activation.

    Attributes:
        kind: what it does: "conv", "linear", "pool", "elementwise" …; decides what `extents` and `statics`
            mean.
        module: path of the module that asked for it.
        inputs, output: indices into `Workload.values`; weights are not among them.
        further: what it writes besides, such as the other parts of a split.
        op: the ONNX operator, for kinds that stand for many ("elementwise", "pool").
        called: what it really is, where `op` is one that costs as much; "" where it is that.
        activation: ONNX operator of the activation folded into it; "" for none.
        extents: dimensions that a plan may change, by name.
        statics: attributes that no plan changes (kernel, stride, padding …).
        macs: multiply-accumulates.
        weights: elements of the weight that it reads each time, as the runtime stores it.
        biased: whether it adds a constant, that of a folded BatchNorm included.
        parameters: names of the parameters that it reads, those of a folded BatchNorm included.
        along: whether it is a part of what another kernel does, and takes no time of its own.
    """

    kind: str
    module: str
    inputs: tuple[int, ...]
    output: int
    further: tuple[int, ...] = ()
    op: str = ""
    called: str = ""
    activation: str = ""
    extents: Mapping[str, Extent] = field(default_factory=dict)
    statics: Mapping[str, Static] = field(default_factory=dict)
    macs: Extent = NOTHING
    weights: Extent = NOTHING
    biased: bool = False
    parameters: tuple[str, ...] = ()
    along: bool = False


@dataclass(frozen=True, eq=False)
class Workload:
    """All that a network makes a runtime do, at one batch size.

    Attributes:
        kernels: in the order in which they run.
        values: the tensors between them.
        inputs, outputs: indices of the values that enter and leave.
        sizes: the distinct expressions that plans change, each the size of an axis.
        group_sizes: units in each group of the graph.
        group_least: the fewest units that a plan may keep in each group.
        parameters: elements of every parameter, by name; buffers are not among them.
        stored: elements of all constants that an exported file holds, BatchNorms folded.
    """

    kernels: tuple[Kernel, ...]
    values: tuple[Value, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    sizes: tuple[Size, ...]
    group_sizes: tuple[int, ...]
    group_least: tuple[int, ...]
    parameters: Mapping[str, Extent]
    stored: tuple[Extent, ...]

    def sizes_of(self, counts: FloatArray) -> FloatArray:
        """Evaluate every size expression for `P` plans that keep `counts[P, G]` units: `[P, S]`."""
        kept = np.asarray(counts, dtype=np.float64) / np.maximum(
            np.asarray(self.group_sizes, dtype=np.float64), 1
        )
        sizes = np.zeros((len(kept), len(self.sizes)))
        for index, size in enumerate(self.sizes):
            for term in size:
                # Rounded, because the product is a whole number and 3 * (2 / 3) need not be one.
                sizes[:, index] += np.rint(term.count * np.prod(kept[:, list(term.groups)], axis=1))
        return sizes

    @cached_property
    def dense(self) -> FloatArray:
        """`[1, S]`: the sizes when nothing is removed."""
        return self.sizes_of(np.array([self.group_sizes], dtype=np.float64))

    @cached_property
    def least(self) -> FloatArray:
        """`[1, S]`: the sizes when every group keeps as little as it may."""
        return self.sizes_of(np.array([self.group_least], dtype=np.float64))

    def weights_of(self, sizes: FloatArray) -> FloatArray:
        """Elements of all weights that a run reads, `[P]` for `sizes[P, S]`; what several kernels read counts once."""
        total: FloatArray = np.zeros(len(sizes))
        for weights in self._distinct_weights:
            total += weights.at(sizes)
        return total

    @cached_property
    def _distinct_weights(self) -> tuple[Extent, ...]:
        reading = (kernel for kernel in self.kernels if kernel.weights.factor)
        # Of a constant without a name nobody knows whether another kernel reads it.
        return tuple({(k.parameters or k.output, k.weights): k.weights for k in reading}.values())

    def range(self, extent: Extent) -> tuple[int, int]:
        """Smallest and largest value of an extent under any plan."""
        return round(float(extent.at(self.least)[0])), round(float(extent.at(self.dense)[0]))

    @cached_property
    def elements(self) -> tuple[Extent, ...]:
        """How many elements each value has."""
        return tuple(value.elements for value in self.values)

    @cached_property
    def uses(self) -> tuple[int, ...]:
        """How often each value is read; leaving the network counts as one."""
        counts = [0] * len(self.values)
        for kernel in self.kernels:
            for value in kernel.inputs:
                counts[value] += 1
        for value in self.outputs:
            counts[value] += 1
        return tuple(counts)

    def producer(self, value: int) -> int | None:
        """Index of the kernel that writes `value`; None for an input of the network."""
        return self._producers.get(value)

    @cached_property
    def _producers(self) -> dict[int, int]:
        return {kernel.output: index for index, kernel in enumerate(self.kernels)}
