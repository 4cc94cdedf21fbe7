"""A plan: which units go, and so which indices of which parameter stay. Plain data that survives JSON."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sned.errors import PlanError
from sned.graph.example import Example, Leaf
from sned.graph.ir import BoolArray, Graph, Group, IntArray

FORMAT = 2

MOST_BYTES = 2**29
"""Of example inputs, all together, that a plan may ask for: to trace again they may have to be made."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What to remove from one network, and from every copy of it.

    Attributes:
        fingerprint: the structure that it was made for (`Graph.fingerprint`).
        shapes: name and shape of every parameter and buffer of that network that a pass reads.
        example: what the example inputs looked like; enough to trace again.
        removed: `{group name: numbers of the units that go}`, sorted, groups that lose nothing left out.
        kept: `{parameter: {axis: indices that stay}}` for every parameter and buffer that changes.
        bypassed: whole layers that are left out (`Graph.layers`); units are removed from what remains, and
            `fingerprint`, `shapes` and `kept` are of that.
        masks: `{parameter: bool}`, like the parameter once units have left it: False where its entries are zero.
    """

    fingerprint: str
    shapes: Mapping[str, tuple[int, ...]]
    example: Example
    removed: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, Mapping[int, IntArray]]
    bypassed: tuple[str, ...] = ()
    masks: Mapping[str, BoolArray] = field(default_factory=dict)

    def counts(self, graph: Graph) -> IntArray:
        """`[groups]`: how many units each group of `graph` keeps."""
        return np.array(
            [group.size - len(self.removed.get(group.name, ())) for group in graph.groups], np.int64
        )

    def to_json(self) -> str:
        """The plan as JSON; `Plan.from_json` reads it back."""
        return json.dumps(
            {
                "format": FORMAT,
                "fingerprint": self.fingerprint,
                "example": _example_to_data(self.example),
                "bypassed": list(self.bypassed),
                "masks": {name: pack_mask(mask) for name, mask in self.masks.items()},
                "removed": {name: list(units) for name, units in self.removed.items()},
                "shapes": {name: list(shape) for name, shape in self.shapes.items()},
                "kept": {
                    name: {str(axis): indices.tolist() for axis, indices in axes.items()}
                    for name, axes in self.kept.items()
                },
            }
        )

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan.

        Raises:
            PlanError: the text is not a plan that this version reads.
        """
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise PlanError(
                    f"This version of sned reads plans of format {FORMAT}, got {data['format']!r}. Make the plan again "
                    "with `sned.plan` or `sned prune`."
                )
            return Plan(
                fingerprint=str(data["fingerprint"]),
                shapes={str(name): tuple(int(n) for n in shape) for name, shape in data["shapes"].items()},
                example=_example_from_data(data["example"]),
                bypassed=tuple(map(str, data.get("bypassed", ()))),
                masks={str(name): unpack_mask(held) for name, held in data.get("masks", {}).items()},
                removed={str(n): tuple(int(u) for u in units) for n, units in data["removed"].items()},
                kept={
                    str(name): {int(axis): np.array(indices, np.int64) for axis, indices in axes.items()}
                    for name, axes in data["kept"].items()
                },
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise PlanError(
                f"A plan must be JSON as `Plan.to_json` writes it, but reading it failed: {error!r}. "
                "Make the plan again with `sned.plan` or `sned prune`."
            ) from error

    def __str__(self) -> str:
        units = sum(len(u) for u in self.removed.values())
        zeros = f"; {len(self.masks)} tensors hold zeros" if self.masks else ""
        left_out = zeros + f"; {len(self.bypassed)} layers are left out" if self.bypassed else zeros
        return f"Plan({units} units out of {len(self.removed)} groups; {len(self.kept)} tensors change{left_out})"


def make_plan(graph: Graph, removed: Mapping[str, Sequence[int]]) -> Plan:
    """See `Graph.plan`."""
    if not isinstance(removed, Mapping):
        raise PlanError(
            f"What goes is a dict of unit numbers by group, such as {{'conv1': [0, 3]}}, got {type(removed).__name__}."
        )
    chosen = {}
    for name, units in removed.items():
        group = graph.group(name)
        gone = _units(group, units)
        _check(group, gone)
        if gone.size:
            chosen[group.index] = gone
    keep = graph.coupling.keep({index: gone.tolist() for index, gone in chosen.items()})
    return Plan(
        fingerprint=graph.fingerprint,
        shapes=shapes_of(graph),
        example=graph.example,
        removed={graph.groups[i].name: tuple(gone.tolist()) for i, gone in sorted(chosen.items())},
        kept=graph.coupling.kept_positions(keep),
        bypassed=graph.bypassed,
    )


def pack_mask(mask: BoolArray) -> dict[str, Any]:
    """A mask as plain data, a bit for each entry; `unpack_mask` reads it back."""
    bits = base64.b64encode(np.packbits(mask.reshape(-1)).tobytes()).decode("ascii")
    return {"shape": list(mask.shape), "bits": bits}


def unpack_mask(held: Mapping[str, Any]) -> BoolArray:
    """What `pack_mask` made.

    Raises:
        ValueError, KeyError, TypeError: it did not make this.
    """
    shape = tuple(int(n) for n in held["shape"])
    bits = np.frombuffer(base64.b64decode(held["bits"], validate=True), np.uint8)
    size = math.prod(shape)
    if min(shape, default=0) < 0 or len(bits) != -(-size // 8):
        raise ValueError(f"a mask of shape {shape} has {-(-size // 8)} bytes, got {len(bits)}")
    return np.unpackbits(bits, count=size).astype(bool).reshape(shape)


def shapes_of(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter and buffer that the traced pass reads."""
    return {name: graph.tensors[number].shape for name, number in graph.parameters.items()}


def _units(group: Group, units: Any) -> IntArray:
    """The numbers of units, each once, rising."""
    listed = list(units) if isinstance(units, Iterable) and not isinstance(units, str) else [units]
    try:
        numbers = np.asarray(listed if listed else np.zeros(0, np.int64))
    except ValueError:  # a ragged nest
        numbers = np.zeros((), bool)
    whole = numbers.ndim == 1 and numbers.dtype.kind in "iu"
    if not whole or (numbers.size and not 0 <= numbers.min() <= numbers.max() < group.size):
        bad = next((u for u in listed if not (whole and 0 <= u < group.size)), units)
        raise PlanError(f"Units of {group.name!r} are numbered 0 to {group.size - 1}, got {bad!r}.")
    return np.unique(numbers.astype(np.int64))


def _check(group: Group, gone: IntArray) -> None:
    if gone.size >= group.size:
        raise PlanError(
            f"At least one unit of {group.name!r} must stay, but all {group.size} were to be removed."
        )
    per_cell = np.bincount(group.cells[gone], minlength=group.cell_count)
    if per_cell.min() != per_cell.max():
        raise PlanError(
            f"Every cell of {group.name!r} must lose equally many units ({group.cell_count} cells of "
            f"{group.cell_size}), got {per_cell.tolist()}. Use `least_important` of the scores, which keeps to that."
        )


def check_fits(plan: Plan, graph: Graph) -> None:
    """Refuse a network that the plan was not made for.

    Raises:
        PlanError: names the first parameter that differs.
    """
    here = shapes_of(graph)
    for name, shape in plan.shapes.items():
        if here.get(name) != shape:
            got = f"shape {here[name]}" if name in here else "no such parameter"
            raise PlanError(
                f"A plan applies to the network that it was made for: parameter {name!r} must have shape {shape}, "
                f"got {got}. Make a plan for this network with `sned.plan`."
            )
    extra = sorted(here.keys() - plan.shapes.keys())
    if extra or graph.fingerprint != plan.fingerprint:
        what = f"parameter {extra[0]!r} is new" if extra else "the forward pass is another one"
        raise PlanError(f"A plan applies to the network that it was made for, but {what}. Make a new plan.")
    try:
        again = graph.plan(plan.removed)
    except PlanError as error:
        raise PlanError(f"A plan applies to the network that it was made for, but here {error}") from error
    for name, mask in plan.masks.items():
        shape = tuple(
            len(plan.kept.get(name, {}).get(axis, range(size)))
            for axis, size in enumerate(here.get(name, ()))
        )
        if name not in here or mask.shape != shape:
            raise PlanError(
                f"A mask of a plan fits the parameter that it was made for: {name!r} has shape {shape} here, its mask "
                f"{mask.shape}. Make the plan again."
            )
    if not _same(again.kept, plan.kept):
        raise PlanError(
            "The units and the indices of a plan must agree, but they do not: it was altered. Make it again."
        )


def _same(a: Mapping[str, Mapping[int, IntArray]], b: Mapping[str, Mapping[int, IntArray]]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].keys() == b[name].keys()
        and all(np.array_equal(a[name][axis], b[name][axis]) for axis in a[name])
        for name in a
    )


def _example_to_data(example: Example) -> dict[str, Any]:
    return {"args": _encode(example.args), "kwargs": _encode(example.kwargs), "batch": example.batch}


def _example_from_data(data: Mapping[str, Any]) -> Example:
    example = Example(_decode(data["args"]), _decode(data["kwargs"]), int(data["batch"]))
    claimed = sum(leaf.size_bytes for leaf in example.leaves())
    if claimed > MOST_BYTES:
        raise ValueError(f"its example inputs claim {claimed:,} bytes, and at most {MOST_BYTES:,} are made")
    return example


def _encode(value: Any) -> Any:
    if isinstance(value, Leaf):
        return {"tensor": [list(value.shape), value.dtype, value.low, value.high]}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {str(name): _encode(item) for name, item in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise PlanError(
        f"Example inputs in a plan hold tensors, numbers, texts and nests of them, got {type(value)!r}."
    )


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tensor":
        shape, dtype, low, high = held
        most = tuple(map(float, high)) if isinstance(high, list) else float(high)
        return Leaf(tuple(int(n) for n in shape), str(dtype), float(low), most)
    if kind == "tuple":
        return tuple(_decode(item) for item in held)
    if kind == "dict":
        return {str(name): _decode(item) for name, item in held.items()}
    raise PlanError(f"Example inputs in a plan hold 'tensor', 'tuple' or 'dict', got {kind!r}.")
