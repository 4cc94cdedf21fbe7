"""One pass over the calibration inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sned.calibration.answers import with_rows
from sned.calibration.beside import ROWS, check_recorded
from sned.calibration.consumers import Consumer, consumers
from sned.calibration.inputs import KeptInputs, read_inputs
from sned.calibration.moments import WIDEST, Moment, Moments, Sums
from sned.calibration.patches import chunks, inputs_within, macs_of, share_of, whole_batches
from sned.calibration.resume import NOTHING, Resume, identity
from sned.calibration.store import RowStore
from sned.errors import CalibrationError, ModelError
from sned.graph.example import Example, Inputs
from sned.graph.ir import Graph, Op
from sned.graph.replay import Replay, State
from sned.progress import SILENT, Progress

FEWEST, MOST = 1024, 4096
"""Inputs that are learnt from unless told otherwise: the former, and up to the latter as far as `MACS` go."""

MACS = 2.0e11
"""Multiply-accumulates of the dense network on all inputs, beyond `FEWEST`: some seconds."""

FURTHER_BYTES = 2**29
"""Of the inputs beyond the limit, at most."""

LARGEST_BATCH = 64

ACTIVATION_VALUES = 2**22
"""Numbers in the largest activation of one batch (16 MB)."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a few hundred inputs taught about a dense network.

    Attributes:
        fingerprint: of the graph that it was made for.
        consumers: every consumer of the graph, in the order of the ops.
        moments: `{consumer.op: Moment}` of the dense network; consumers that read the same patches share one.
        count: how many inputs it was learnt from.
        further: how many more were read, to train on: they lie behind the others.
        batch: inputs in each batch that `batches` yields.
        macs: multiply-accumulates of the dense network on one input.
        synthetic: whether the inputs are random, for want of real ones.
        resume: where further stages on the same weights and inputs keep what they find.
    """

    fingerprint: str
    consumers: tuple[Consumer, ...] = field(repr=False)
    moments: Mapping[int, Moment] = field(repr=False)
    count: int
    batch: int
    macs: float
    synthetic: bool
    _inputs: KeptInputs = field(repr=False)
    _outputs: tuple[RowStore, ...] = field(repr=False)
    _each: tuple[Fraction, ...] = field(repr=False)
    further: int = 0
    resume: Resume = field(repr=False, default=NOTHING)

    def batches(
        self, start: int = 0, stop: int | None = None, *, size: int | None = None
    ) -> Iterator[Inputs]:
        """The inputs `start` to `stop` in batches of `size` (by default `batch`), as `Replay.run` and the model take
        them; those further ones lie behind `count`."""
        return self._inputs.batches(size or self.batch, start, self.count if stop is None else stop)

    def outputs(self, start: int = 0, stop: int | None = None) -> list[Tensor]:
        """What the dense network answered to inputs `start` to `stop`: each output that has rows, these first."""
        stop = self.count if stop is None else stop
        return [
            store.read(int(start * each), int(stop * each))
            for store, each in zip(self._outputs, self._each, strict=True)
        ]

    def answers(self, start: int = 0) -> Iterator[list[Tensor]]:
        """The dense network's outputs for each of `batches`."""
        for first in range(start, self.count, self.batch):
            yield self.outputs(first, min(first + self.batch, self.count))

    def within(self, macs: float, fewest: int, most: int) -> int:
        """How many inputs the dense network can answer within some multiply-accumulates: `fewest` to `most`."""
        return inputs_within(macs, self.macs, fewest, most)

    @property
    def note(self) -> str:
        """Where the inputs came from, for a report."""
        if self.synthetic:
            return f"{self.count} random inputs drawn like the example: no calibration data was given"
        more = f", and {self.further} more to match the network on" if self.further else ""
        return f"{self.count} calibration inputs, without labels{more}"


def calibrate(
    graph: Graph,
    state: State,
    batches: Iterable[Any] | Calibration | None,
    *,
    limit: int | None = None,
    further: int = 0,
    moments: bool = True,
    progress: Progress = SILENT,
    workdir: Path | None = None,
    seed: int = 0,
    resume: Resume = NOTHING,
) -> Calibration:
    """Read inputs once and learn what enters each consumer and what the dense network answers.

    Args:
        graph: what `sned.trace` made.
        state: parameters and buffers of the dense network by name.
        batches: yields inputs as the model takes them (tensors or NumPy arrays, alone or in tuples or dicts),
            any batch size, no labels; floats of another width are converted. Or another calibration, for the inputs
            that it read. None: random inputs like the example.
        limit: inputs to learn from at most; None for 1,024 of a large network to 4,096 of a small one.
        further: inputs to read beyond them at most, and no more than `FURTHER_BYTES` of them; kept to train on.
        moments: whether to learn what enters each consumer; without them it serves `repair` alone.
        progress: shown while it runs.
        workdir: where large input sets are spooled to; a temporary folder when None.
        seed: of the random inputs, and of the choice of patches where not all are taken.
        resume: where to keep what was learnt so far, and to find it after an interruption.

    Returns:
        The `Calibration`. Its moments take `width²` numbers a consumer, everything else is spooled.

    Raises:
        CalibrationError: the batches are empty, labelled, or not what the model takes; or what was recorded is not
            what the model computes on them.
        ModelError: the network answers NaN.
    """
    found = consumers(graph)
    macs = sum(macs_of(consumer, graph) for consumer in found)
    limit = _limit(graph, macs, limit)
    kept, synthetic = _inputs(graph, batches, limit, further, workdir, seed)
    count = min(limit, len(kept))
    size = batch_size(graph)
    replay = Replay(graph, state)
    few = min(ROWS, count) if graph.batched else graph.batch
    for start in sorted({0, count - few}):  # the first may be the very inputs that were recorded
        check_recorded(replay, next(kept.batches(few, start, start + few)))
    watcher = _Watcher(graph, found if moments else (), count, seed)
    if resume.folder is not None:
        resume = resume.keyed(identity(graph, state, kept.digest(), count, size, seed))
    outputs = _pass(replay, kept, count, size, watcher, resume, progress, workdir)
    return Calibration(
        fingerprint=graph.fingerprint,
        consumers=found,
        moments=watcher.moments(workdir),
        count=count,
        batch=size,
        macs=macs,
        synthetic=synthetic,
        _inputs=kept,
        _outputs=outputs,
        _each=tuple(rows.each for rows in graph.rows if rows),
        further=len(kept) - count,
        resume=resume,
    )


def _pass(
    replay: Replay,
    kept: KeptInputs,
    count: int,
    size: int,
    watcher: _Watcher,
    resume: Resume,
    progress: Progress,
    workdir: Path | None,
) -> tuple[RowStore, ...]:
    """Run all inputs under the eyes of a watcher, and give what the network answers; go on from where an
    interrupted run was."""
    slot = resume.slot("calibration")
    done, stores = _restored(slot.found, watcher, workdir)
    if done:
        resume.resumed("calibration", min(done * size, count), count)
    # Answers that were too many to keep are given once more, which takes no patches.
    first = done if stores else 0

    def held() -> dict[str, Tensor]:
        kept = {} if any(store.spooled for store in stores) else _held(stores)
        return {"done": torch.tensor(number + 1), **watcher.held(), **kept}

    with (
        progress.task("calibrating, resumed" if done else "calibrating", count) as advance,
        torch.no_grad(),
    ):
        if first:
            advance(min(first * size, count))
        for number, inputs in enumerate(kept.batches(size, first * size, count), start=first):
            outputs, _ = replay.run(inputs, before=watcher.at(number) if number >= done else None)
            _check_outputs(outputs)
            answers = with_rows(replay.graph, outputs)
            stores = stores or tuple(RowStore(workdir) for _ in answers)
            for store, rows in zip(stores, answers, strict=True):
                store.append(rows)
            if number >= done:
                slot.offer(held)
            advance(min(size, count - number * size))
    if done * size < count:
        slot.close(held)
    return stores


def _held(stores: Sequence[RowStore]) -> dict[str, Tensor]:
    return {f"answers/{place}": store.read(0, len(store)) for place, store in enumerate(stores)}


def _restored(
    found: Mapping[str, Tensor], watcher: _Watcher, workdir: Path | None
) -> tuple[int, tuple[RowStore, ...]]:
    """How many batches were done, and what the network answered to them (nothing, where that was not kept)."""
    if not found:
        return 0, ()
    watcher.restore(found)
    stores: list[RowStore] = []
    while (rows := found.get(f"answers/{len(stores)}")) is not None:
        stores.append(RowStore(workdir))
        stores[-1].append(rows)
    return int(found["done"]), tuple(stores)


def synthetic_batches(example: Example, count: int, *, batch: int = 32, seed: int = 0) -> Iterator[Inputs]:
    """Random inputs like the example (normal floats, integers in the range seen), for want of real ones."""
    for number, first in enumerate(range(0, count, batch)):
        args, kwargs = example.random(min(batch, count - first), seed + number, fixed=seed)
        yield kwargs if kwargs and not args else args


def batch_size(graph: Graph) -> int:
    """Inputs to run at once: as many as keep the largest activation within one chunk."""
    if not graph.batched:
        return graph.batch
    held = set(graph.parameters.values()) | set(graph.constants)
    largest = max((prod(t.shape) for n, t in enumerate(graph.tensors) if n not in held), default=1)
    return max(1, min(LARGEST_BATCH, ACTIVATION_VALUES * graph.batch // max(largest, 1)))


def _limit(graph: Graph, macs: float, asked: int | None) -> int:
    """How many inputs to learn from; whole batches of a network that runs at one batch size only."""
    count = inputs_within(MACS, macs, FEWEST, MOST) if asked is None else asked
    if count < 1:
        raise CalibrationError(f"`limit` must be at least 1 input, got {count}.")
    return whole_batches(graph, count)


def _inputs(
    graph: Graph,
    batches: Iterable[Any] | Calibration | None,
    limit: int,
    further: int,
    workdir: Path | None,
    seed: int,
) -> tuple[KeptInputs, bool]:
    if isinstance(batches, Calibration):
        return batches._inputs, batches.synthetic
    if batches is None:
        size = graph.example.batch if not graph.batched else 32
        random = synthetic_batches(graph.example, limit, batch=size, seed=seed)
        return read_inputs(graph.example, random, limit, workdir), True
    example = graph.example
    held = sum(prod(leaf.shape) * getattr(torch, leaf.dtype).itemsize for leaf in example.leaves())
    affordable = FURTHER_BYTES * example.batch // max(held, 1)
    kept = read_inputs(example, batches, limit + min(further, affordable), workdir)
    count = min(limit, len(kept))
    if not graph.batched and count % graph.batch:
        raise CalibrationError(
            f"This model runs at batch size {graph.batch} only, so the number of calibration inputs must be "
            f"a multiple of it, got {count}."
        )
    return kept, False


def _check_outputs(outputs: Iterable[Tensor]) -> None:
    for output in outputs:
        if output.is_floating_point() and bool(torch.isnan(output).any()):
            raise ModelError(
                "The network answers NaN to finite calibration inputs. Check its weights, and that the "
                "inputs are "
                "prepared as in training."
            )


class _Watcher:
    """Sums up the patches that enter each consumer while a replay runs."""

    def __init__(self, graph: Graph, found: tuple[Consumer, ...], count: int, seed: int) -> None:
        self._graph = graph
        self._seed = seed
        self._by_op = {consumer.op: consumer for consumer in found}
        self._first = _first_readers(graph, found)
        self._sums = {op: Sums(full=self._by_op[op].width <= WIDEST) for op in set(self._first.values())}
        self._share = {op: share_of(self._by_op[op], graph, count) for op in self._sums}

    def at(self, number: int) -> Callable[[Op, dict[int, Tensor]], None]:
        """What to do ahead of each op of batch `number`."""

        def before(op: Op, live: dict[int, Tensor]) -> None:
            if op.index in self._sums:
                consumer = self._by_op[op.index]
                size = self._graph.tensors[consumer.output].shape[2:] if consumer.geometry else ()
                seed = patch_seed(self._seed, consumer, number)
                share = self._share[op.index]
                for piece in chunks(consumer, live[consumer.input], size, share=share, seed=seed):
                    self._sums[op.index].add(piece.x)

        return before

    def held(self) -> dict[str, Tensor]:
        """All sums so far, for `restore`."""
        return {
            f"sums/{op}/{name}": tensor
            for op, sums in self._sums.items()
            for name, tensor in sums.held().items()
        }

    def restore(self, held: Mapping[str, Tensor]) -> None:
        """Go on from what `held` gave."""
        for op, sums in self._sums.items():
            start = f"sums/{op}/"
            sums.restore({n.removeprefix(start): t for n, t in held.items() if n.startswith(start)})

    def moments(self, folder: Path | None) -> Moments:
        """The moment of every consumer; the sums are gone."""
        made = ((op, self._sums.pop(op).moment()) for op in list(self._sums))
        return Moments(self._first, made, folder)


def patch_seed(seed: int, consumer: Consumer, batch: int) -> int:
    """A seed of its own for every consumer and batch."""
    return (seed * 1_000_003 + consumer.op) * 1_000_003 + batch * 4096


def _first_readers(graph: Graph, found: tuple[Consumer, ...]) -> dict[int, int]:
    """For each consumer (by op) the first one that reads the very same patches."""
    by_op = {consumer.op: consumer for consumer in found}
    written: dict[int, int] = {}  # by which op last
    first: dict[tuple[Any, ...], int] = {}
    shared: dict[int, int] = {}
    for op in graph.ops:
        if (c := by_op.get(op.index)) is not None:
            patches = c.input, c.geometry, c.parts, c.width, written.get(c.input)
            shared[c.op] = first.setdefault(patches, c.op)
        written |= {number: op.index for number in op.outputs if number is not None}
    return shared
