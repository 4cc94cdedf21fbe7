"""Zeros in the weights of a Keras model that stay zero while it is trained, and that come little by little."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from sned.errors import NotFoundError, UserError, close_names

Mask = NDArray[np.bool_]


class HoldZeros(keras.callbacks.Callback):  # type: ignore[misc]
    """A callback that keeps zero what is zero in the kernels of a model when training begins.

    The weights are put right after every batch (with `steps_per_execution`, after every execution) and when training
    ends, so that the trained model holds its zeros as plain numbers and needs nothing of sned. Give it after callbacks
    that put other weights back at the end, such as `EarlyStopping`.

    Args:
        only: patterns of the paths of variables, such as `["*/conv2d*/kernel"]`; by default all trainable weights of
            two axes and more but biases, and but those that are zero altogether: they have yet to learn.

    Example:
        >>> sparse = sned.sparsify(model, x, sparsity=0.8, calibration=batches).model
        >>> sparse.fit(images, labels, callbacks=[sned.keras.HoldZeros()])
    """

    def __init__(self, only: Sequence[str] | None = None) -> None:
        super().__init__()
        self.only = only
        self._masks: list[tuple[Any, Mask]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Note where zeros are."""
        del logs
        found = [(v, _values(v) != 0) for v in kernels(self.model, self.only)]
        self._masks = [(v, mask) for v, mask in found if mask.any() or self.only is not None]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Set them to zero again."""
        del batch, logs
        self.hold()

    def on_train_end(self, logs: Any = None) -> None:
        """Set them to zero once more: an optimiser with `use_ema`, say, ends with an average of weights."""
        del logs
        self.hold()

    def hold(self) -> None:
        """Set every masked entry to zero."""
        _synchronised(self.model)
        for variable, mask in self._masks:
            if not mask.all():
                variable.assign(_values(variable) * mask)


class GradualSparsity(HoldZeros):
    """A callback that makes more and more of the smallest weights zero while a model is trained, and keeps them so.

    After the batch `t` of those from `begin` to `end` the share `s_t = s * (1 - (1 - (t - begin) / (end - begin))³)` of
    every kernel is zero. What it made zero stays so. Batches are counted over all calls of `fit` that it is given to
    with one model, and with those before a crash where `BackupAndRestore` goes on after it.

    Args:
        sparsity: `s`, the share of zeros at the end, in (0, 1).
        end: number of the batch, from the start of training, after which all of it is reached; training that ends
            before it is warned about.
        begin: number of the batch after which the first weights go.
        every: batches between two rounds.
        only: as for `HoldZeros`.

    Example:
        >>> model.fit(images, labels, epochs=4, callbacks=[sned.keras.GradualSparsity(0.8, end=900)])

    Reference:
        Zhu, Gupta, "To prune, or not to prune", 2017, equation 1.
    """

    def __init__(
        self, sparsity: float, *, end: int, begin: int = 0, every: int = 20, only: Sequence[str] | None = None
    ) -> None:
        super().__init__(only)
        if not isinstance(sparsity, int | float | np.number) or not 0 < sparsity < 1:
            raise UserError(
                f"`sparsity` is the share of weights that become zero, a number in (0, 1), got {sparsity!r}."
            )
        if (
            not all(isinstance(n, int | np.integer) for n in (begin, end, every))
            or not 0 <= begin < end
            or every < 1
        ):
            raise UserError(
                f"Whole numbers `begin` < `end` and `every` >= 1 are needed, got {begin!r}, {end!r} and {every!r}."
            )
        self.sparsity, self.begin, self.end, self.every = sparsity, begin, end, every
        self._batches = self._before = 0
        self._round = -1

    def on_train_begin(self, logs: Any = None) -> None:
        """Find the kernels; no zeros but its own are held. Of another model everything begins anew."""
        del logs
        known = {id(v): mask for v, mask in self._masks}
        found = kernels(self.model, self.only)
        if known.keys().isdisjoint(map(id, found)):
            self._batches, self._round = 0, -1
        self._masks = [(v, known.get(id(v), np.ones(tuple(v.shape), np.bool_))) for v in found]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Note how many batches there were; those, too, of a run that `BackupAndRestore` goes on with."""
        del epoch, logs
        restored = getattr(self.model, "_initial_epoch", None)  # where it leaves the epoch's number
        if restored is not None and not self._batches:
            super().on_train_begin()
            self._reach(restored * (self.params.get("steps") or 0))
        self._before = self._batches

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Make more of them zero where it is time, and hold those that are."""
        del logs
        self._reach(self._before + batch + 1)  # an execution may be of several

    def _reach(self, batches: int) -> None:
        self._batches = batches
        if (now := self._round_at(self._batches)) > self._round:
            self._round = now
            _synchronised(self.model)
            share = self.share(self._batches)
            self._masks = [(v, _smallest_gone(_values(v), mask, share)) for v, mask in self._masks]
        self.hold()

    def on_train_end(self, logs: Any = None) -> None:
        """Hold them once more, and tell where training ended before the schedule."""
        super().on_train_end(logs)
        if self._batches < self.end:
            warnings.warn(
                f"Training ended after batch {self._batches}, but `end` is {self.end}: "
                f"{self.share(self._batches):.0%} of the weights were to be zero by then, of {self.sparsity:.0%} in "
                "the end. Call `fit` again with the same callback, or give a smaller `end`.",
                stacklevel=2,
            )

    def _round_at(self, batch: int) -> int:
        """The number of the last round that is due after a batch; -1 for none."""
        if batch < self.end:
            return (batch - self.begin) // self.every if batch >= self.begin else -1
        return (self.end - self.begin) // self.every + 1

    def share(self, batch: int) -> float:
        """The share of zeros that is due after a batch."""
        passed = min(max((batch - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.sparsity * (1 - (1 - passed) ** 3)


def kernels(model: Any, only: Sequence[str] | None = None) -> list[Any]:
    """The trainable variables of two axes and more but biases, or those whose path fits one of the patterns.

    Raises:
        NotFoundError: a pattern fits none; close names are listed.
    """
    matrices = [v for v in model.trainable_variables if len(v.shape) > 1]
    only = [only] if isinstance(only, str) else only
    if only is None:
        return [v for v in matrices if "bias" not in v.name]
    for pattern in only:
        if not any(fnmatchcase(v.path, pattern) for v in matrices):
            raise NotFoundError(
                f"No weight fits {pattern!r}. {close_names(pattern, [v.path for v in matrices])}"
            )
    return [v for v in matrices if any(fnmatchcase(v.path, pattern) for pattern in only)]


def sparsity_of(model: Any) -> float:
    """The share of zeros in the kernels of a model, in [0, 1]."""
    held = [_values(v) for v in kernels(model)]
    return float(sum((x == 0).sum() for x in held) / max(sum(x.size for x in held), 1))


def _smallest_gone(values: NDArray[Any], mask: Mask, share: float) -> Mask:
    """The mask with so many more of the smallest entries gone that `share` is."""
    count = round(share * values.size)
    size = np.where(mask, np.abs(values), -1.0).ravel()  # what is gone goes first
    gone = np.argpartition(size, count - 1)[:count] if count else np.zeros(0, np.int64)
    kept = mask.ravel().copy()
    kept[gone] = False
    return kept.reshape(mask.shape)


def _values(variable: Any) -> NDArray[Any]:
    return np.asarray(keras.ops.convert_to_numpy(variable.value))


def _synchronised(model: Any) -> None:
    """On JAX, `fit` keeps the variables elsewhere until it is asked to put them back."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
