"""What a pruned network returns, held against what its plan promises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import nn
from torch.func import functional_call

from sned.errors import SurgeryError
from sned.graph.example import ArgsAndKwargs, tensors_in
from sned.graph.trace import state_of
from sned.graph.untouched import Untouched

TOLERANCE = 1e-4
"""Largest difference to the replay, relative to the largest number of an output in single or double precision."""

ROUGH = 0.05
"""The same for all other outputs."""

NONE: Mapping[str, torch.Tensor] = MappingProxyType({})

_FINE = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def answered(
    model: nn.Module,
    written: Iterable[str],
    inputs: ArgsAndKwargs,
    own: Mapping[str, torch.Tensor] = NONE,
    untouched: Untouched | None = None,
) -> Sequence[torch.Tensor]:
    """What a model returns, which keeps its buffers and all that it remembers of its calls.

    Args:
        model: in the mode that is wanted.
        written: names of the buffers that a pass writes into.
        inputs: to be changed, maybe.
        own: tensors to use in the place of the model's, by name.
        untouched: takes back what the pass leaves in the model, where one serves several passes.
    """
    state = {**state_of(model), **own}
    other = {**own, **{name: state[name].clone() for name in written if name in state}}
    args, kwargs = inputs
    with untouched or Untouched(model):
        return tensors_in(functional_call(model, other, args, kwargs) if other else model(*args, **kwargs))


def shaken(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, with random ones in the place of weights that are all zero and would hide every difference."""
    return {name: _not_zero(tensor) for name, tensor in state.items()}


def _not_zero(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point() or tensor.ndim < 2:
        return tensor
    if bool(tensor[:1].any()) or bool(tensor.any()):  # nearly always told by the first row
        return tensor
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tensor.shape, generator=generator).to(tensor) / math.sqrt(tensor.shape[-1])


def largest_difference(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], batch: int) -> float:
    """The largest difference between outputs, relative to the largest of each.

    Raises:
        SurgeryError: they differ by more than rounding, or in their shapes.
    """
    worst = 0.0
    for number, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        if mine.shape != theirs.shape:
            raise SurgeryError(
                f"A pruned network must compute what its plan promises, but output {number} has shape "
                f"{tuple(mine.shape)} instead of {tuple(theirs.shape)}. Please report this network."
            )
        if not theirs.numel():
            continue
        a, b = _numbers(mine), _numbers(theirs)
        scale = max(float(b.abs().nan_to_num(0, 0, 0).max()), 1e-6)
        difference = (
            float((a - b).abs().nan_to_num(0 if bool((a.isnan() == b.isnan()).all()) else 1e9).max()) / scale
        )
        if difference > (TOLERANCE if theirs.dtype in _FINE else ROUGH):
            raise SurgeryError(
                f"A pruned network must compute what its plan promises, but its outputs differ by {difference:.2g} of "
                f"the largest one at batch size {batch} (output {number}). The original was not touched. Please report "
                "it."
            )
        worst = max(worst, difference)
    return worst


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in double precision, complex numbers as pairs."""
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return real.cpu().double()  # MPS has no float64
