"""Which of ONNX Runtime's kernels each step becomes at given widths, for many plans at once.

On x86 the runtime keeps images in blocks of channels ("NCHWc") wherever it can. What it can depends on the
widths: a convolution whose input channels are no multiple of four falls back to a slower kernel, and
reorders appear at the borders. So a plan that removes more can be slower, and a cost model that is to be
searched has to know.

Reference: ONNX Runtime, core/optimizer/nchwc_transformer.cc; every rule here is tested against the graph
    that the
installed version makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from sned.devices.kernels import BoolArray, Extent, FloatArray, Kernel, Static, Value, Workload

ALIGNMENT = 4
"""Reorders move four channels at once; other widths stay in plain layout."""

STAYS_BLOCKED = frozenset(
    {"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid", "HardSwish", "Gelu", "QuickGelu"}
)
MERGED_IN_BLOCKS = frozenset({"Relu", "Sigmoid", "Tanh"})
MERGED_IN_PLAIN = frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid"})
Chosen = slice | NDArray[np.intp]
"""Which plans: all, or those of these numbers."""

CONVOLUTIONS = ("conv", "depthwise", "grouped")


@dataclass(frozen=True)
class Family:
    """Measurable ops of one kind that differ in their widths only."""

    recipe: str
    statics: tuple[tuple[str, Static], ...] = ()

    def __getitem__(self, name: str) -> Static:
        return dict(self.statics)[name]


@dataclass(frozen=True, eq=False)
class Launch:
    """One op of a family that the runtime runs for kernel `kernel` in those plans where `where` holds.

    Attributes:
        place: number among the launches of the network, the same for all plans.
        kernel: index into `Workload.kernels`.
        family: what is run.
        where: `[P]`.
        widths: one `[P]` array for each axis of the family's recipe.
    """

    place: int
    kernel: int
    family: Family
    where: BoolArray
    widths: tuple[FloatArray, ...]


def launches(workload: Workload, sizes: FloatArray, block: int) -> list[Launch]:
    """Say what the runtime runs for `P` plans.

    Args:
        workload: the network.
        sizes: `[P, S]`, from `Workload.sizes_of`.
        block: channels in a block of the runtime's layout; 1 where it has none.

    Returns:
        Every op that some plan can make it run, whether or not one of these plans does: the list is the same
            for all.
    """
    layout = Layout(workload, sizes, block)
    for index, kernel in enumerate(workload.kernels):
        if not kernel.along:
            LAYOUT_RULES.get(kernel.kind, _plain)(layout, index, kernel)
    for value in workload.outputs:
        layout.read(value, plain=layout.everywhere)
    layout.reorders()
    return layout.made


def kernel_times(
    kernels: int, plans: int, made: Iterable[Launch], time: Callable[[Launch, Chosen], FloatArray]
) -> FloatArray:
    """Add up the times of launches by kernel: `[kernels, P]`.

    Args:
        kernels: of the network.
        plans: how many, `P`.
        made: launches, for these plans.
        time: of a launch in the plans that are chosen, with its widths in those only.
    """
    times = np.zeros((kernels, plans))
    for launch in made:
        if launch.where.all():
            times[launch.kernel] += time(launch, slice(None))
        elif launch.where.any():
            chosen = np.flatnonzero(launch.where)
            widths = tuple(width[chosen] for width in launch.widths)
            times[launch.kernel, chosen] += time(replace(launch, widths=widths), chosen)
    return times


class Layout:
    """What is known of every value while the rules walk through a workload."""

    def __init__(self, workload: Workload, sizes: FloatArray, block: int) -> None:
        self.workload = workload
        self.block = block
        self.made: list[Launch] = []
        self.everywhere: BoolArray = np.ones(len(sizes), dtype=np.bool_)
        self.nowhere: BoolArray = np.zeros(len(sizes), dtype=np.bool_)
        self._sizes = sizes
        self._memo: dict[Extent, FloatArray] = {}
        self._blocked: dict[int, BoolArray] = {}
        self._open: dict[int, BoolArray] = {}  # an activation can still be merged into what wrote the value
        self._plain_reads: dict[int, BoolArray] = {}
        self._blocked_reads: dict[int, BoolArray] = {}
        self._first_reader: dict[int, int] = {}
        self._reader = 0

    def at_kernel(self, index: int) -> None:
        """Say whose turn it is."""
        self._reader = index

    def at(self, extent: Extent) -> FloatArray:
        """An extent for every plan."""
        if extent not in self._memo:
            self._memo[extent] = extent.at(self._sizes)
        return self._memo[extent]

    def blocked(self, value: int) -> BoolArray:
        """In which plans a value is kept in blocks."""
        return self._blocked.get(value, self.nowhere)

    def open(self, value: int) -> BoolArray:
        """In which plans the next activation costs nothing."""
        return self._open.get(value, self.nowhere)

    def planar(self, kernel: Kernel) -> bool:
        """Whether a convolution is of images, the only ones that are kept in blocks."""
        return self.block > 1 and len(self.workload.values[kernel.inputs[0]].inner) == 2

    def padded(self, channels: FloatArray) -> FloatArray:
        """Channels with the rest of the last block."""
        return np.ceil(channels / self.block) * self.block

    def read(self, value: int, *, plain: BoolArray | None = None, blocked: BoolArray | None = None) -> None:
        """Note in which plans the current kernel wants `value` in which layout."""
        self._first_reader.setdefault(value, self._reader)
        if plain is not None:
            self._plain_reads[value] = self._plain_reads.get(value, self.nowhere) | plain
        if blocked is not None:
            self._blocked_reads[value] = self._blocked_reads.get(value, self.nowhere) | blocked

    def write(self, value: int, blocked: BoolArray, *, open_: BoolArray | None = None) -> None:
        """Note in which plans `value` is written in blocks."""
        self._blocked[value] = blocked
        if open_ is not None and self.workload.uses[value] == 1:
            self._open[value] = open_

    def launch(
        self, index: int, recipe: str, where: BoolArray, widths: tuple[FloatArray, ...], /, **statics: Static
    ) -> None:
        """Note that in some plans `recipe` runs for kernel `index`."""
        family = Family(recipe, tuple(sorted(statics.items())))
        self.made.append(Launch(len(self.made), index, family, where, widths))

    def reorders(self) -> None:
        """Between the layouts: once a value, however many read it."""
        for index, value in enumerate(self.workload.values):
            owner = self.workload.producer(index)
            owner = self._first_reader.get(index, 0) if owner is None else owner
            n, channels = self.at(value.batch), self.at(value.channels)
            inner = float(np.prod(value.inner, initial=1.0))
            if index in self._blocked and index in self._plain_reads and self._ever(self._blocked[index]):
                where = self._blocked[index] & self._plain_reads[index]
                self.launch(owner, "reorder_output", where, (n, channels), inner=int(inner))
            if index in self._blocked_reads:
                where = ~self.blocked(index) & self._blocked_reads[index]
                self.launch(owner, "reorder_input", where, (n, channels), inner=int(inner))

    def _ever(self, where: BoolArray) -> bool:
        return self.block > 1 and where is not self.nowhere


LayoutRule = Callable[[Layout, int, Kernel], None]


def _without_cost(activation: str) -> str:
    """Clipping at zero happens while results are in registers; other activations take time of their own."""
    return "" if activation == "Relu" else activation


def _conv_statics(kernel: Kernel) -> dict[str, Static]:
    return {**kernel.statics, "activation": _without_cost(kernel.activation)}


def _plain_convolution(
    layout: Layout,
    index: int,
    recipe: str,
    where: BoolArray,
    widths: tuple[FloatArray, ...],
    /,
    **statics: Static,
) -> None:
    """A convolution of images as they are; an activation that only blocked ones take in is an op of its own."""
    activation = statics["activation"]
    if activation in MERGED_IN_PLAIN or not activation:
        layout.launch(index, recipe, where, widths, **statics)
        return
    layout.launch(index, recipe, where, widths, **{**statics, "activation": ""})
    made = layout.workload.values[layout.workload.kernels[index].output]
    layout.launch(index, "elementwise", where, (layout.at(made.elements),), op=str(activation), inputs=1)


def _merge_targets(workload: Workload, add: Kernel) -> list[Kernel]:
    """The convolutions that the runtime may let do this addition, in the order in which it looks at them.

    The memory of the other operand, which nobody reads afterwards, becomes that of the result, so the
    addition costs nothing.
    """
    if add.op != "Add" or not _equal_operands(workload, add):
        return []
    written = [
        workload.kernels[index]
        for value in add.inputs
        if workload.uses[value] == 1 and (index := workload.producer(value)) is not None
    ]
    return [kernel for kernel in written if kernel.kind in CONVOLUTIONS and not kernel.activation]


def _equal_operands(workload: Workload, kernel: Kernel) -> bool:
    return len(kernel.inputs) == 2 and len({workload.values[value].shape for value in kernel.inputs}) == 1


def _conv(layout: Layout, index: int, kernel: Kernel) -> None:
    n, ci, co = (layout.at(kernel.extents[name]) for name in ("n", "ci", "co"))
    least, most = layout.workload.range(kernel.extents["ci"])
    statics = _conv_statics(kernel)
    planar = layout.planar(kernel)
    direct = (ci < layout.block) if planar else layout.nowhere
    blocked = (ci >= layout.block) & (ci % ALIGNMENT == 0) if planar else layout.nowhere
    layout.at_kernel(index)
    layout.read(
        kernel.inputs[0], plain=~blocked, blocked=blocked if planar and most >= layout.block else None
    )
    if planar and least < layout.block:
        layout.launch(index, "direct_conv", direct, (n, ci, co), **statics)
    if planar and most >= layout.block:
        layout.launch(index, "blocked_conv", blocked, (n, ci, co), **statics)
    if not planar or (most > layout.block and least != most) or most % ALIGNMENT:
        _plain_convolution(layout, index, "plain_conv", ~(direct | blocked), (n, ci, co), **statics)
    layout.write(kernel.output, direct | blocked)


def _depthwise(layout: Layout, index: int, kernel: Kernel) -> None:
    n, c = (layout.at(kernel.extents[name]) for name in ("n", "co"))
    one_each = kernel.extents["ci"] == kernel.extents["co"]
    planar = layout.planar(kernel) and one_each
    blocked = c % ALIGNMENT == 0 if planar else layout.nowhere
    statics = _conv_statics(kernel)
    layout.at_kernel(index)
    layout.read(kernel.inputs[0], plain=~blocked, blocked=blocked if planar else None)
    if planar:
        layout.launch(index, "blocked_depthwise", blocked, (n, c), **statics)
    least, most = layout.workload.range(kernel.extents["co"])
    if not planar or least != most or most % ALIGNMENT:
        multiplier = max(1, round(most / layout.workload.range(kernel.extents["ci"])[1]))
        _plain_convolution(
            layout, index, "plain_depthwise", ~blocked, (n, c), multiplier=multiplier, **statics
        )
    layout.write(kernel.output, blocked)


def _grouped(layout: Layout, index: int, kernel: Kernel) -> None:
    """Blocked where every group fills its blocks; where only one group is left, as any other convolution."""
    n, ci, co, per_group = (layout.at(kernel.extents[name]) for name in ("n", "ci", "co", "ci_group"))
    groups = ci / per_group
    single = groups == 1
    fits = (per_group % layout.block == 0) & (co / groups % layout.block == 0)
    most = layout.workload.range(kernel.extents["ci_group"])[1]
    possible = layout.planar(kernel) and (
        most >= layout.block or kernel.extents["ci"] != kernel.extents["ci_group"]
    )
    direct = single & (ci < layout.block) if possible else layout.nowhere
    blocked = fits | (single & (ci >= layout.block) & (ci % ALIGNMENT == 0)) if possible else layout.nowhere
    statics = {name: value for name, value in _conv_statics(kernel).items() if name != "groups"}
    layout.at_kernel(index)
    layout.read(kernel.inputs[0], plain=~blocked, blocked=blocked if possible else None)
    widths = (n, groups, per_group, co / groups)
    if possible:
        layout.launch(index, "blocked_grouped", direct | blocked, widths, **statics)
    _plain_convolution(layout, index, "plain_grouped", ~(direct | blocked), widths, **statics)
    layout.write(kernel.output, direct | blocked)


def _pool(layout: Layout, index: int, kernel: Kernel) -> None:
    n, c = layout.at(kernel.extents["n"]), layout.at(kernel.extents["c"])
    possible = layout.block > 1 and layout.workload.range(kernel.extents["c"])[1] >= layout.block
    blocked = c % layout.block == 0 if possible else layout.nowhere
    layout.at_kernel(index)
    layout.read(kernel.inputs[0], plain=~blocked, blocked=blocked if possible else None)
    if possible:
        layout.launch(index, "blocked_pool", blocked, (n, c), op=kernel.op, **kernel.statics)
    layout.launch(index, "plain_pool", ~blocked, (n, c), op=kernel.op, **kernel.statics)
    layout.write(kernel.output, blocked)


def _elementwise(layout: Layout, index: int, kernel: Kernel) -> None:
    """Stays in blocks where all it reads is; additions and what follows them merge into convolutions."""
    stays = kernel.op in STAYS_BLOCKED if len(kernel.inputs) == 1 else _binary_stays(layout.workload, kernel)
    blocked = layout.everywhere if stays else layout.nowhere
    for read in kernel.inputs:
        blocked = blocked & layout.blocked(read)
    merged = layout.open(kernel.inputs[0]) & _mergeable(kernel.op, blocked)
    if targets := _merge_targets(layout.workload, kernel):
        merged = blocked.copy()
        for target in targets:
            merged |= ~layout.blocked(target.output) & target.biased
    layout.at_kernel(index)
    for read in kernel.inputs:
        layout.read(read, plain=~blocked)
    value = layout.workload.values[kernel.output]
    channels = layout.at(value.channels)
    inner = float(np.prod(value.inner, initial=1.0))
    elements = layout.at(value.batch) * inner * np.where(blocked, layout.padded(channels), channels)
    layout.launch(index, "elementwise", ~merged, (elements,), op=kernel.op, inputs=_whole(layout, kernel))
    layout.write(kernel.output, blocked, open_=merged if kernel.op == "Add" else None)


def _whole(layout: Layout, kernel: Kernel) -> int:
    """How many of the operands are as large as the result; the others are broadcast."""
    values = layout.workload.values
    made = prod(values[kernel.output].shape)
    return max(1, sum(prod(values[read].shape) == made for read in kernel.inputs))


def _binary_stays(workload: Workload, kernel: Kernel) -> bool:
    return kernel.op in ("Add", "Mul") and _equal_operands(workload, kernel)


def _mergeable(op: str, blocked: BoolArray) -> BoolArray:
    """Where a convolution that already adds can take in the activation behind it, too."""
    return np.where(blocked, op in MERGED_IN_BLOCKS, op in MERGED_IN_PLAIN)


def _norm(layout: Layout, index: int, kernel: Kernel) -> None:
    """A BatchNorm that no convolution took in; in blocks it becomes a 1 × 1 convolution of each channel."""
    value = layout.workload.values[kernel.output]
    blocked = layout.blocked(kernel.inputs[0])
    layout.at_kernel(index)
    layout.read(kernel.inputs[0], plain=~blocked)
    n, c = layout.at(value.batch), layout.at(value.channels)
    if layout.planar(kernel) and layout._ever(blocked):
        ones = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
        statics: Mapping[str, Static] = {
            **ones,
            "spatial": value.inner,
            "output": value.inner,
            "activation": "",
        }
        layout.launch(index, "blocked_depthwise", blocked, (n, c), **statics)
    layout.launch(index, "norm", ~blocked, (n, c), inner=int(np.prod(value.inner, initial=1.0)))
    layout.write(kernel.output, blocked, open_=blocked)


def _concat(layout: Layout, index: int, kernel: Kernel) -> None:
    """Blocks can be put side by side where every part fills its last one."""
    blocked = layout.everywhere if kernel.statics["axis"] == 1 and layout.block > 1 else layout.nowhere
    for read in kernel.inputs:
        channels = layout.at(layout.workload.values[read].channels)
        blocked = blocked & layout.blocked(read) & (channels % layout.block == 0)
    layout.at_kernel(index)
    for read in kernel.inputs:
        layout.read(read, plain=~blocked)
    elements = layout.at(layout.workload.values[kernel.output].elements)
    layout.launch(index, "concat", layout.everywhere, (elements,), inputs=len(kernel.inputs))
    layout.write(kernel.output, blocked)


def _plain(layout: Layout, index: int, kernel: Kernel) -> None:
    layout.at_kernel(index)
    for read in kernel.inputs:
        layout.read(read, plain=layout.everywhere)
    recipe, widths = PLAIN_KINDS[kernel.kind]
    value: Value = layout.workload.values[kernel.output]
    named = {**kernel.extents, "elements": value.elements}
    where = layout.everywhere
    layout.launch(index, recipe, where, tuple(layout.at(named[width]) for width in widths), op=kernel.op)


def _linear(layout: Layout, index: int, kernel: Kernel) -> None:
    _plain(layout, index, kernel)
    if kernel.biased:
        written = layout.at(layout.workload.values[kernel.output].elements)
        layout.launch(index, "elementwise", layout.everywhere, (written,), op="Add", inputs=1)


def _deconv(layout: Layout, index: int, kernel: Kernel) -> None:
    layout.at_kernel(index)
    layout.read(kernel.inputs[0], plain=layout.everywhere)
    widths = tuple(layout.at(kernel.extents[name]) for name in ("n", "ci", "co"))
    layout.launch(index, "deconv", layout.everywhere, widths, **kernel.statics)


PLAIN_KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "linear": ("gemm", ("m", "k", "n")),
    "matmul": ("matmul", ("b", "m", "k", "n")),
    "reduce": ("reduce", ("rows", "columns")),
    "rows": ("rows", ("rows", "columns")),
    "copy": ("copy", ("elements",)),
    "reshape": ("reshape", ()),
}

LAYOUT_RULES: Mapping[str, LayoutRule] = {
    "conv": _conv,
    "deconv": _deconv,
    "linear": _linear,
    "depthwise": _depthwise,
    "grouped": _grouped,
    "pool": _pool,
    "elementwise": _elementwise,
    "norm": _norm,
    "concat": _concat,
}
