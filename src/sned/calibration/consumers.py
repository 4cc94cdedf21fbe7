"""Consumers: the ops that contract a labelled axis of an activation with a parameter.

They are where the removal of a unit is felt, and where it can be repaired: a consumer computes `y = W x (+
b)` for every patch `x` that it reads, so the error of any choice of units, and the weights that make up for
it, follow from second moments of `x` alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch

from sned.graph.ir import Graph, IntArray, Op, Ref, Slices
from sned.graph.replay import overload
from sned.graph.sizes import Sizes

PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm"})

VIEWS = frozenset(
    {
        "alias", "clone", "contiguous", "detach", "expand", "permute", "reshape", "squeeze", "t", "transpose",
        "unsqueeze", "view", "_unsafe_view",
    }
)  # fmt: skip
"""Ops that only rearrange: an index sent through them tells where every weight ends up."""


@dataclass(frozen=True)
class Geometry:
    """How the window of a convolution slides, one number an axis; `groups` are the convolution's own."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    @property
    def window(self) -> int:
        """Positions of the kernel: 9 for 3 × 3."""
        return prod(self.kernel)


@dataclass(frozen=True, eq=False)
class Read:
    """A group whose units a consumer reads: removing unit `u` takes the entries `rows[u]` of its patches.

    `rows` is `[units, k]`, counted `part * width + entry`: with one part they index its moments as they are.
    """

    group: int
    rows: IntArray


@dataclass(frozen=True, eq=False)
class Consumer:
    """An op that contracts an activation with a parameter, seen as `parts` matrices: `y_g = W_g x_g (+ b_g)`.

    A part is a group of a grouped convolution (else there is one). The patch `x_g` has `width` entries: input
    channels of the part, each with all positions of the kernel (`channel * window + position`).

    Attributes:
        op: index in `Graph.ops`; what names the consumer everywhere.
        name: the module that made the call.
        kind: "convolution", "depthwise" (one input channel a part) or "linear".
        weight: name of its parameter.
        bias: name of the parameter added to its output, None where there is none or where other layers read it too.
        bias_inside: whether the recorded output already holds the bias.
        fixed: name of a parameter that the recorded output holds, and that stays since other layers read it too.
        input, output: tensor ids.
        axis: where the channels lie in both.
        parts: groups of the convolution, or batched matrices; 1 for most.
        outputs: output channels of each part.
        channels: input channels of each part.
        geometry: of a convolution, else None.
        reads: the groups whose units it reads.
        readers: how many ops read its weight; where there are several, it cannot be solved for alone.
    """

    op: int
    name: str
    kind: str
    weight: str
    bias: str | None
    bias_inside: bool
    input: int
    output: int
    axis: int
    parts: int
    outputs: int
    channels: int
    geometry: Geometry | None
    readers: int
    reads: tuple[Read, ...] = field(repr=False)
    fixed: str | None = None

    @property
    def shared(self) -> bool:
        """Whether another op reads its weight too."""
        return self.readers > 1

    @property
    def window(self) -> int:
        """Entries of a patch for each input channel."""
        return self.geometry.window if self.geometry else 1

    @property
    def width(self) -> int:
        """Entries of a patch, in each part."""
        return self.channels * self.window


def consumers(graph: Graph) -> tuple[Consumer, ...]:
    """Every op of `graph` that contracts an activation with a parameter, in order.

    Found are convolutions (grouped, depthwise, transposed, of any rank) and matrix products whose right
    operand is a parameter, reached through views, transposes and expansions of it.
    """
    return _Finder(graph).found()


def layout(graph: Graph, sizes: Sizes, consumer: Consumer) -> torch.Tensor:
    """Where the matrices of a consumer lie: `int [parts, outputs, width]` indices into its flattened weight.

    `weight.flatten()[layout]` are the matrices; writing them back is the same the other way round. `sizes`
    says under which plan.
    """
    return matrices(graph, sizes, graph.ops[consumer.op], consumer.weight)


def matrices(graph: Graph, sizes: Sizes, op: Op, weight: str) -> torch.Tensor:
    """`layout`, of an op that is not known as a consumer yet."""
    number = graph.parameters[weight]
    shape = sizes.shape(number)
    kind = torch.int32 if prod(shape) < 2**31 else torch.int64
    index = torch.arange(prod(shape), dtype=kind).reshape(shape)
    if op.name != "convolution":
        return _product_layout(_viewed(graph, sizes, _product_operands(op)[1].id, number, index))
    index = _viewed(graph, sizes, op.args[1].id, number, index)
    args, _ = sizes.arguments(op)
    transposed, groups = args[6], args[8]
    return _transposed_layout(index, groups) if transposed else _convolution_layout(index, groups)


def _convolution_layout(index: torch.Tensor, groups: int) -> torch.Tensor:
    return index.reshape(groups, index.shape[0] // groups, -1)


def _transposed_layout(index: torch.Tensor, groups: int) -> torch.Tensor:
    """A transposed convolution is one of the spread-out input with the kernel turned around."""
    axes = tuple(range(2, index.ndim))
    turned = index.flip(axes).reshape(groups, index.shape[0] // groups, *index.shape[1:])
    return turned.transpose(1, 2).reshape(groups, index.shape[1], -1)


def _product_layout(index: torch.Tensor) -> torch.Tensor:
    """`[K, O]` or `[B, K, O]`; the same matrix for every item of the batch is one part."""
    batched = index if index.ndim == 3 else index[None]
    if bool((batched == batched[:1]).all()):
        batched = batched[:1]
    return batched.transpose(1, 2)


def _viewed(graph: Graph, sizes: Sizes, tensor: int, source: int, index: torch.Tensor) -> torch.Tensor:
    """Send an index of parameter `source` through the ops that make `tensor` of it."""
    if tensor == source:
        return index
    op = _producers(graph)[tensor]
    args, kwargs = sizes.arguments(op)
    before = _viewed(graph, sizes, args[0].id, source, index)
    result: torch.Tensor = overload(op.target)(before, *args[1:], **kwargs)
    return result


def _producers(graph: Graph) -> dict[int, Op]:
    return {number: op for op in reversed(graph.ops) for number in op.outputs if number is not None}


def _product_operands(op: Op) -> tuple[Ref, Ref, Any]:
    """Left, right and bias (or None) of a matrix product."""
    if op.name in ("addmm", "baddbmm"):
        return op.args[1], op.args[2], op.args[0]
    return op.args[0], op.args[1], None


def _spread(values: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """One number for all axes means the same for each."""
    return values if len(values) == rank else values * rank


class _Finder:
    """Walks over the ops of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names = {number: name for name, number in graph.parameters.items()}
        self.made_by = _producers(graph)
        self.readers: dict[int, list[Op]] = {}
        self._sizes = Sizes(graph, graph.coupling.keep({}))
        self._slices: dict[str, list[tuple[int, Slices]]] = {}
        for group in graph.groups:
            for slices in group.slices:
                self._slices.setdefault(slices.parameter, []).append((group.index, slices))
        for op in graph.ops:
            for number in set(op.inputs):
                self.readers.setdefault(number, []).append(op)

    def found(self) -> tuple[Consumer, ...]:
        """All consumers; a bias is theirs alone where nothing reads it but the calls of one weight."""
        made = [consumer for op in self.graph.ops if (consumer := self.find(op)) is not None]
        calls = Counter((consumer.weight, consumer.bias) for consumer in made)
        return tuple(
            replace(c, bias=None, bias_inside=False, fixed=c.bias if c.bias_inside else None)
            if c.bias is not None and self._uses(c.bias) > calls[c.weight, c.bias]
            else c
            for c in made
        )

    def find(self, op: Op) -> Consumer | None:
        """An op as a consumer, None where it is none: moments are of real numbers."""
        if any(self.graph.tensors[number].dtype.startswith("complex") for number in op.inputs):
            return None
        if op.name == "convolution":
            return self.convolution(op)
        return self.product(op) if op.name in PRODUCTS else None

    def source(self, ref: Any) -> str | None:
        """The parameter that a tensor is a view of, None where it is anything else."""
        if not isinstance(ref, Ref):
            return None
        number = ref.id
        while number not in self.names:
            op = self.made_by.get(number)
            if op is None or op.name not in VIEWS:
                return None
            number = op.inputs[0]
        return self.names[number] if self.names[number] in self.graph.trainable else None

    def convolution(self, op: Op) -> Consumer | None:
        """A convolution whose weight is a view of a parameter."""
        x, weight, bias = op.args[:3]
        name = self.source(weight)
        if name is None or (bias is not None and self.source(bias) is None):
            return None
        shape = self.graph.tensors[weight.id].shape
        stride, padding, dilation, transposed, output_padding, groups = op.args[3:9]
        rank = len(shape) - 2
        geometry = Geometry(
            kernel=shape[2:],
            stride=_spread(stride, rank),
            padding=_spread(padding, rank),
            dilation=_spread(dilation, rank),
            transposed=bool(transposed),
            output_padding=_spread(output_padding, rank),
            groups=int(groups),
        )
        depthwise = groups > 1 and groups == self.graph.tensors[x.id].shape[1]
        kind = "depthwise" if depthwise else "convolution"
        return self._consumer(op, kind, name, bias, x.id, 1, geometry)

    def product(self, op: Op) -> Consumer | None:
        """A matrix product with a view of a parameter on the right."""
        if any(scale != 1 for scale in op.kwargs.values()):
            return None
        left, right, bias = _product_operands(op)
        name = self.source(right)
        if name is None or self.source(left) is not None or (bias is not None and self.source(bias) is None):
            return None
        axis = len(self.graph.tensors[left.id].shape) - 1
        return self._consumer(op, "linear", name, bias, left.id, axis, None)

    def _consumer(
        self, op: Op, kind: str, weight: str, bias: Ref | None, x: int, axis: int, geometry: Geometry | None
    ) -> Consumer | None:
        index = matrices(self.graph, self._sizes, op, weight)
        parts, outputs, width = index.shape
        output = op.outputs[0]
        if output is None or (geometry is None and parts not in (1, self.graph.tensors[x].shape[0])):
            return None
        inside = self.source(bias) if bias is not None else None
        return Consumer(
            op=op.index,
            name=op.module,
            kind=kind,
            weight=weight,
            bias=inside or self._bias_after(output, parts * outputs, axis)
            if parts == 1 or geometry
            else None,
            bias_inside=inside is not None,
            input=x,
            output=output,
            axis=axis,
            parts=parts,
            outputs=outputs,
            channels=width // (geometry.window if geometry else 1),
            geometry=geometry,
            readers=self._uses(weight),
            reads=self._reads(weight, index),
        )

    def _bias_after(self, number: int, outputs: int, axis: int) -> str | None:
        """A bias that is added to an output behind ops that only rearrange; `axis` is where the channels lie."""
        while len(readers := self.readers.get(number, [])) == 1:
            op = readers[0]
            if op.name == "add" and len(op.args) == 2 and not op.kwargs and isinstance(op.args[1], Ref):
                return self._bias(op.args[1], len(self.graph.tensors[number].shape) - axis, outputs)
            rank = len(self.graph.tensors[number].shape)
            if op.outputs[0] is None:
                return None
            if op.name == "permute":
                axis = [a % rank for a in op.args[1]].index(axis)
            elif op.name in ("view", "_unsafe_view", "reshape") and axis == rank - 1:
                axis = len(self.graph.tensors[op.outputs[0]].shape) - 1
            elif op.name not in ("clone", "contiguous", "alias"):
                return None
            number = op.outputs[0]
        return None

    def _bias(self, added: Ref, from_end: int, outputs: int) -> str | None:
        """The parameter `[outputs]` that is added along an axis counted from the end, None where it is none."""
        name, shape = self.source(added), self.graph.tensors[added.id].shape
        if name is None or self.graph.tensors[self.graph.parameters[name]].shape != (outputs,):
            return None
        return name if shape[-from_end:][:1] == (outputs,) and prod(shape) == outputs else None

    def _uses(self, parameter: str) -> int:
        """How many ops read a parameter, not counting the views of it."""
        count = 0
        front = [self.graph.parameters[parameter]]
        while front:
            for op in self.readers.get(front.pop(), []):
                if op.name in VIEWS:
                    front += [number for number in op.outputs if number is not None]
                else:
                    count += 1
        return count

    def _reads(self, name: str, index: torch.Tensor) -> tuple[Read, ...]:
        """The groups that own columns of the matrices: the numbers of their units go where the weights go."""
        shape = self.graph.tensors[self.graph.parameters[name]].shape
        reads = []
        for group, slices in self._slices.get(name, ()):
            numbers = torch.full((shape[slices.axis],), -1, dtype=torch.int32)
            units = torch.arange(len(slices.positions), dtype=torch.int32)
            numbers[torch.from_numpy(slices.positions)] = units[:, None]
            spread = numbers.reshape([-1 if a == slices.axis else 1 for a in range(len(shape))]).expand(shape)
            placed = spread.flatten()[index]
            column = torch.where((placed == placed[:, :1]).all(1), placed[:, 0], -1).flatten().numpy()
            rows = np.flatnonzero(column >= 0)
            if len(rows):
                by_unit = rows[np.argsort(column[rows], kind="stable")]
                reads.append(Read(group, by_unit.reshape(len(units), -1)))
        return tuple(reads)
