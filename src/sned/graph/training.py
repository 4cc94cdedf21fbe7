"""What a network does in train mode beyond what it does in eval mode.

A pass in train mode that does nothing more tells nothing of the groups, and would double the time of a trace.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

from torch import nn

from sned.graph.example import tensors_in
from sned.graph.ir import Affine, Op, Ref
from sned.graph.provenance import OF_EVERY_MODULE
from sned.graph.recording import Recording

NORMS = frozenset({"native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"})
"""Ops that compute otherwise in train mode, on the same channels; the first argument is what they normalise."""

LIKE = frozenset({"alias", "bernoulli", "bernoulli_", "clone", "detach", "empty_like", "full_like", "native_dropout",
                  "normal_", "ones_like", "rand_like", "randn_like", "uniform_", "zeros_like"})  # fmt: skip
"""Ops that return, or fill, a tensor of the shape of the one that they are given."""

FRESH = frozenset({"new_empty", "new_zeros", "new_ones", "new_full"})
"""Ops that read nothing of the tensor that they are given."""

OURS = frozenset({"torch", "sned"})
"""Whose code asks for the mode of its own layers alone: of dropout and of normalisations."""


@contextmanager
def mode_watched(recording: Recording) -> Iterator[None]:
    """Note which modules the user's code asks whether they are in train mode: only there may it do something else."""

    def asked(module: nn.Module) -> bool:
        if "training" not in vars(module):
            raise AttributeError("training")
        caller = sys._getframe(1)
        if str(caller.f_globals.get("__name__", "")).partition(".")[0] not in OURS:
            calls = recording.asked.setdefault(module, [])
            if caller.f_code.co_name != "forward" or caller.f_locals.get("self") is not module:
                calls.append(())  # another's code, which may do anything
        mode: bool = vars(module)["training"]
        return mode

    def put(module: nn.Module, mode: bool) -> None:
        vars(module)["training"] = mode

    nn.Module.training = property(asked, put)  # type: ignore[assignment]
    try:
        yield
    finally:
        del nn.Module.training


def alike(module: nn.Module, given: tuple[Any, ...]) -> Hashable:
    """The same for modules that do the same in train mode, but for how often or how much: a fraction is no size."""
    held = ((name, value) for name, value in vars(module).items() if name not in OF_EVERY_MODULE)
    own = tuple((name, value > 0 if isinstance(value, float) else repr(value)) for name, value in held)
    return type(module), own, tuple((tensor.shape, tensor.dtype) for tensor in tensors_in(given)), len(given)


def adds(trained: Recording, main: Recording, batch: int) -> bool:
    """Whether a pass in train mode does more than draw random factors and take statistics of the batch.

    Each op is looked for in eval mode, on the same tensors; what is scaled or disturbed element by element stands for
    what it was made of.

    Args:
        trained: the pass in train mode.
        main: the pass in eval mode.
        batch: of both, at least that at which `trained` was recorded.
    """
    if len(trained.scales) != len(main.scales) or len(trained.leaks) != len(main.leaks):
        return True
    more = (trained.tensors[n] for name, n in trained.parameters.items() if name not in main.parameters)
    if any(tensor.dtype.startswith(("float", "bfloat", "complex")) for tensor in more):
        return True
    return not _Twins(trained, main, batch).complete()


class _Twins:
    """Which tensor of the pass in eval mode each one in train mode stands for; None for one that every size suits."""

    def __init__(self, trained: Recording, main: Recording, batch: int) -> None:
        self._trained, self._main, self._batch = trained, main, batch
        self._twin: dict[int, int | None] = dict(zip(trained.inputs, main.inputs, strict=True))
        for order, (name, number) in enumerate(trained.parameters.items()):
            self._twin[number] = main.parameters.get(name, -1 - order)
        self._made: dict[Hashable, list[Op]] = {}
        for op in reversed(main.ops):
            self._made.setdefault(self._key(op, {}), []).append(op)

    def complete(self) -> bool:
        """Whether every op and every output has its twin."""
        if any(not self._suits_all(number) for number in self._trained.constants):
            return False
        self._twin |= dict.fromkeys(self._trained.constants)
        if not all(map(self._found, self._trained.ops)):
            return False
        return tuple(self._twin[number] for number in self._trained.outputs) == self._main.outputs

    def _found(self, op: Op) -> bool:
        made = self._made.get(self._key(op, self._twin))
        if made:
            self._twin.update(
                (mine, theirs)
                for mine, theirs in zip(op.outputs, made.pop().outputs, strict=False)
                if mine is not None
            )
            return True
        outputs = [number for number in op.outputs if number is not None]
        read = {self._twin[number] for number in op.inputs} - {None}
        if all(map(self._suits_all, outputs)) and (not read or op.name in FRESH):
            self._twin.update(dict.fromkeys(outputs))
            return True
        shapes = {self._trained.tensors[number].shape for number in outputs}
        shapes |= {self._trained.tensors[n].shape for n in op.inputs if self._twin[n] is not None}
        if len(read) != 1 or len(shapes) > 1 or not (op.pointwise or op.name in LIKE):
            return False
        self._twin.update(dict.fromkeys(outputs, read.pop()))
        return True

    def _suits_all(self, number: int) -> bool:
        """Whether a tensor holds one value, or one for each input."""
        shape = self._trained.tensors[number].shape
        return prod(shape) == 1 or (len(shape) > 1 and shape[0] == self._batch == prod(shape))

    def _key(self, op: Op, twin: dict[int, int | None]) -> Hashable:
        """The same for one op in both passes; statistics are of the network in the one, of the batch in the other."""
        norm = op.name in NORMS
        args = self._renamed(op.args[:1] if norm else op.args, twin)
        rest = tuple(sorted((name, self._renamed(value, twin)) for name, value in op.kwargs.items()))
        return "norm" if norm else op.target, args, rest

    def _renamed(self, value: Any, twin: dict[int, int | None]) -> Hashable:
        """Arguments as a key, with each tensor by the number of its twin, and numbers as they are for the batch."""
        if isinstance(value, Ref):
            return Ref, twin.get(value.id, value.id)
        if isinstance(value, tuple | list):
            return tuple([self._renamed(item, twin) for item in value])
        if isinstance(value, Affine):
            value = value(self._batch)
        return value.__class__, repr(value)
