"""The data of a run as batches whose order is a function of the epoch alone, shared out among processes.

Taken are a pair of tensors `(inputs, targets)`, a PyTorch `Dataset` or `DataLoader`, or a list of batches. A batch is
a pair `(inputs, targets)`, or a dict with its targets under "labels"; inputs are what the model is called with: a
tensor, a tuple of positional arguments or a dict of keyword arguments. Batch sizes are of all processes together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, Subset

from sned.errors import TrainingError, UserError
from sned.training.randomness import FETCH, ORDER, SPLIT, generator, seed_all

LABELS = ("labels", "label", "targets", "target")
"""Where a batch that is a dict holds its targets."""

Augment = Callable[[Any], Any]
"""From the inputs of a batch, on the device, to inputs that are changed at random."""


@dataclass(frozen=True)
class Batch:
    """Part of an epoch: `rows` are numbers of the inputs in the data, where they are known (unaugmented)."""

    inputs: Any
    targets: Any
    count: int
    rows: Tensor | None = None


@dataclass(frozen=True)
class Place:
    """Which process this is, of how many, and the device that it computes on."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world: int = 1


class Batches(Protocol):
    """Batches of one epoch after another."""

    def __len__(self) -> int:
        """Batches an epoch."""
        ...

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Those of one epoch from the one numbered `start` on: the same ones however often it is asked for."""
        ...


class InMemory:
    """Tensors that are all on the device, drawn in an order of each epoch's own.

    Args:
        inputs: a tensor, or a nest of them, `[n, …]`.
        targets: `[n, …]`, or a nest.
        size: inputs a batch, over all processes. A last batch that is not full is left out, unless it is the only one.
        shuffle: whether order is drawn; else all inputs come in turn, the last batch too.
        steps: batches an epoch at most.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        *,
        size: int,
        place: Place,
        seed: int = 0,
        shuffle: bool = True,
        augment: Augment | None = None,
        steps: int | None = None,
    ) -> None:
        self.inputs = pytree.tree_map(lambda t: t.to(place.device), inputs)
        self.targets = pytree.tree_map(lambda t: t.to(place.device), targets)
        self.count = _rows_of((inputs, targets))
        self.size, self._place, self._seed = min(size, self.count), place, seed
        self._shuffle, self._augment = shuffle, augment
        there = self.count // self.size if shuffle else -(-self.count // self.size)
        self._length = min(there, steps or there)

    @property
    def fixed(self) -> bool:
        """Whether every epoch has the same inputs, in another order."""
        return self._augment is None

    def __len__(self) -> int:
        return self._length

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from `start` on; what comes before is not touched."""
        order = torch.arange(self.count)
        if self._shuffle:
            order = torch.randperm(self.count, generator=generator(self._seed, ORDER, number))
        order = order.to(self._place.device)
        for index in range(start, len(self)):
            whole = order[index * self.size : (index + 1) * self.size]
            rows = whole[self._place.rank :: self._place.world]
            if not len(rows):  # fewer are left than there are processes
                continue
            inputs = pytree.tree_map(lambda t, rows=rows: t[rows], self.inputs)
            targets = pytree.tree_map(lambda t, rows=rows: t[rows], self.targets)
            if self._augment is not None:
                seed_all(self._seed, FETCH, number, index, self._place.rank)
                inputs = self._augment(inputs)
            yield Batch(inputs, targets, len(rows), None if self._augment else rows)


class Loaded:
    """Batches of a data loader or of a list, read in order and put on the device.

    Args:
        batches: what is iterated over once an epoch.
        length: batches an epoch.
        share: of each batch the rows of this process are taken (False: the batches are this process's already).
    """

    def __init__(
        self,
        batches: Iterable[Any],
        length: int,
        *,
        place: Place,
        seed: int = 0,
        share: bool = False,
        augment: Augment | None = None,
    ) -> None:
        self._batches, self._length, self._place, self._seed = batches, length, place, seed
        self._share, self._augment = share, augment

    def __len__(self) -> int:
        return self._length

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from `start` on; earlier ones are read and dropped, so that all is drawn as before.

        Raises:
            TrainingError: the data end before the batches that they announced.
        """
        _start_epoch(self._batches, number, self._seed)
        read = iter(self._batches)
        for index in range(self._length):
            # The first fetch draws the order, which is every process's; the others are each one's own.
            seed_all(self._seed, FETCH, number, index, self._place.rank if index else 0)
            try:
                given = next(read)
            except StopIteration:
                raise _ended(number, index, self._length) from None
            if index < start:
                continue
            batch = _on_device(unpacked(given), self._place, share=self._share)
            yield batch if self._augment is None else _augmented(batch, self._augment)


def _augmented(batch: Batch, augment: Augment) -> Batch:
    return Batch(augment(batch.inputs), batch.targets, batch.count)


def _start_epoch(batches: Any, number: int, seed: int) -> None:
    """Tell samplers the epoch, and give loaders with generators of their own this epoch's state."""
    for held in (batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None)):
        own = getattr(held, "generator", None)
        if isinstance(own, torch.Generator):
            own.manual_seed(generator(seed, ORDER, number).initial_seed())
    if callable(told := getattr(batches, "set_epoch", None)):
        told(number)


def _ended(epoch: int, index: int, length: int) -> TrainingError:
    once = " A generator can be read only once: give a list or a DataLoader." if not index and epoch else ""
    return TrainingError(
        f"The data announced {length} batches an epoch, but ended after {index} in epoch {epoch + 1}.{once} "
        "Check the loader, or say how many to take with `steps_per_epoch`."
    )


def unpacked(given: Any) -> Batch:
    """A batch as it comes from the user's data.

    Raises:
        UserError: it is neither a pair nor a dict with targets.
    """
    if isinstance(given, Mapping):
        held = dict(given)
        name = next((name for name in LABELS if name in held), None)
        if name is not None:
            targets = held.pop(name)
            return Batch(held, targets, _rows_of(held))
    elif isinstance(given, tuple | list) and len(given) == 2:
        inputs, targets = given
        return Batch(tuple(inputs) if isinstance(inputs, list) else inputs, targets, _rows_of(inputs))
    what = f"a {type(given).__name__} of {len(given)}" if isinstance(given, Sized) else type(given).__name__
    raise UserError(
        "A batch to train on must be a pair (inputs, targets), or a dict with its targets under 'labels', got "
        f"{what}. Inputs of several tensors go into a tuple or dict of their own."
    )


def _rows_of(nest: Any) -> int:
    tensors = [leaf for leaf in pytree.tree_leaves(nest) if isinstance(leaf, Tensor) and leaf.ndim]
    counts = {len(leaf) for leaf in tensors}
    if len(counts) != 1 or 0 in counts:
        raise UserError(
            f"Tensors to train on hold equally many inputs, at least one, along their first axis, got {sorted(counts)}."
        )
    return counts.pop()


def _on_device(batch: Batch, place: Place, *, share: bool) -> Batch:
    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        own = value[place.rank :: place.world] if share and value.ndim else value
        return own.to(place.device, non_blocking=True)

    inputs, targets = pytree.tree_map(moved, (batch.inputs, batch.targets))
    return Batch(inputs, targets, _rows_of(inputs))


# --- what the user gave ----------------------------------------------------------------------------------------------


def is_pair(data: Any) -> bool:
    """Whether data are a tuple `(inputs, targets)` of tensors or arrays, rather than a list of batches."""
    leaves = pytree.tree_leaves(data)
    return (
        isinstance(data, tuple)
        and len(data) == 2
        and all(isinstance(leaf, Tensor | np.ndarray) for leaf in leaves)
    )


def held_out(data: Any, share: float, seed: int) -> tuple[Any, Any]:
    """Data for training and for validation: `share` of the inputs, drawn once for the seed, validate.

    Raises:
        UserError: the share is not in (0, 1) or leaves nothing, or the data cannot be split.
    """
    count = _rows_of(data) if is_pair(data) else len(data) if _indexed(data) else 0
    held = round(share * count)
    if not 0 < held < count:
        raise UserError(
            f"`validation` as a share must be in (0, 1), of tensors or a Dataset that it leaves some of, got {share:g} "
            f"of {count or type(data).__name__}. For a loader or a list, give validation data of their own."
        )
    order = torch.randperm(count, generator=generator(seed, SPLIT))
    train, rest = order[held:].sort().values, order[:held].sort().values
    if isinstance(data, Dataset):
        return Subset(data, train.tolist()), Subset(data, rest.tolist())
    tensors = pytree.tree_map(torch.as_tensor, data)
    return (
        pytree.tree_map(lambda t: t[train], tensors),
        pytree.tree_map(lambda t: t[rest], tensors),
    )


def _indexed(data: Any) -> bool:
    return isinstance(data, Dataset) and isinstance(data, Sized)


def batches_of(
    data: Any,
    *,
    size: int,
    place: Place,
    seed: int = 0,
    training: bool = True,
    steps: int | None = None,
    augment: Augment | None = None,
) -> Batches:
    """What the user gave as batches.

    Args:
        data: a pair of tensors or arrays, a Dataset, a DataLoader, or a list of batches.
        size: of a batch, for those that have none.
        training: whether order is drawn and every process gets equally much; else every input comes once.
        steps: batches an epoch; as many as there are where None.

    Raises:
        UserError: data of another kind, without a length, or with a batch size that processes cannot share.
    """
    if training and size % place.world:
        raise UserError(f"`batch_size` is shared by all processes: {size} does not divide by {place.world}.")
    if is_pair(data):
        inputs, targets = pytree.tree_map(torch.as_tensor, data)
        return InMemory(
            inputs, targets, size=size, place=place, seed=seed, shuffle=training, augment=augment, steps=steps
        )
    if isinstance(data, Dataset):
        data = DataLoader(data, size, shuffle=training, drop_last=training and len(data) > size)  # type: ignore[arg-type]
    if isinstance(data, DataLoader):
        loader = _shared(data, place, seed, training=training)
        return Loaded(
            loader,
            _length(loader, steps, type(data.dataset).__name__),
            place=place,
            seed=seed,
            augment=augment,
        )
    if isinstance(data, str | bytes | Mapping | Tensor | np.ndarray) or not isinstance(data, Iterable):
        raise UserError(
            "Data to train on are a pair of tensors (inputs, targets), a Dataset, a DataLoader or a list of batches, "
            f"got {type(data).__name__}."
        )
    length = _length(data, steps)
    if training or place.world == 1:
        return Loaded(data, length, place=place, seed=seed, share=training, augment=augment)
    own = range(place.rank, length, place.world)
    return Loaded(_Every(data, place, length), len(own), place=place, seed=seed, augment=augment)


@dataclass(frozen=True)
class _Every:
    """Every so many-th batch: what one process validates on."""

    batches: Iterable[Any]
    place: Place
    length: int

    def __iter__(self) -> Iterator[Any]:
        return islice(self.batches, self.place.rank, self.length, self.place.world)


def _shared(loader: DataLoader[Any], place: Place, seed: int, *, training: bool) -> DataLoader[Any]:
    """The loader as Accelerate shares it out: the rows of each batch in training, else whole batches."""
    from accelerate.data_loader import prepare_data_loader

    prepared: DataLoader[Any] = prepare_data_loader(
        loader,
        place.device,
        num_processes=place.world,
        process_index=place.rank,
        split_batches=training,
        even_batches=training,
        use_seedable_sampler=training,
        data_seed=seed,
        put_on_device=True,
    )
    return prepared


def _length(data: Any, steps: int | None, name: str = "") -> int:
    try:
        length = len(data)
    except TypeError as error:
        if steps is None:
            raise UserError(
                f"How long an epoch is must be known, but {name or type(data).__name__} has no length. "
                "Say how many batches to take with `steps_per_epoch`."
            ) from error
        return steps
    if not length:
        raise UserError(
            "The data hold no batch at all: they are empty, or smaller than one batch with `drop_last`."
        )
    return min(length, steps or length)
