"""The recorded ops beside the model itself, on a few of the inputs that are to be learnt from.

A recording holds what steered the pass when it was made (lengths, a value that was read): on inputs that steer it
otherwise it is another network, and what was learnt from it would be of no use.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sned.errors import CalibrationError
from sned.graph.example import Inputs, arguments, copied, tensors_in
from sned.graph.replay import Replay
from sned.graph.trace import device_of, mode_of, plain_kernels, state_of
from sned.graph.untouched import Untouched

ROWS = 8
"""Inputs that both are run on, where any number will do."""

LIMIT = 0.05
"""Largest distance of answers, relative to their norm: rounding stays far below it in 16 bits too."""


def check_recorded(replay: Replay, inputs: Inputs) -> None:
    """Refuse inputs on which the recorded ops do not compute what the model computes.

    Args:
        replay: of the dense network. Nothing is checked where its graph came without the model, or where that is on
            another device than the weights.
        inputs: a few of those to learn from.

    Raises:
        CalibrationError: the model does not run on them, or answers otherwise.
    """
    model = replay.graph.model
    if not isinstance(model, nn.Module) or device_of(state_of(model)) != replay.device:
        return
    with torch.random.fork_rng([]), torch.no_grad():  # whatever the two draw, they draw alike
        torch.default_generator.manual_seed(0)
        wanted = _answers(model, replay, inputs)
        torch.default_generator.manual_seed(0)
        try:
            got, _ = replay.run(copied(inputs))
            gap = _distance(got, wanted)
        except Exception as error:
            raise CalibrationError(_refusal(f"they raise {type(error).__name__}: {error}")) from error
    if gap > LIMIT:
        raise CalibrationError(_refusal(f"their answers are {gap:.0%} from the model's"))


def _answers(model: nn.Module, replay: Replay, inputs: Inputs) -> Sequence[Tensor]:
    """What the model answers, which keeps its modes, its buffers and what it remembers."""
    written = {name: replay.state[name].clone() for name in replay.graph.written}
    args, kwargs = copied(arguments(inputs))
    try:
        with plain_kernels(), mode_of(model, training=False), Untouched(model):
            return tensors_in(functional_call(model, {**replay.state, **written}, args, kwargs))
    except Exception as error:
        raise CalibrationError(
            f"The model must run on the inputs to learn from, but {type(model).__name__}.forward raised "
            f"{type(error).__name__}: {error}. Prepare them as for the model."
        ) from error


def _distance(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest distance among outputs, relative to the norm of what is wanted; infinite for other shapes, but for
    the axis of a row alone, which a network may drop."""
    got, wanted = [t.squeeze() for t in got], [t.squeeze() for t in wanted]
    if [t.shape for t in got] != [t.shape for t in wanted]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(got, wanted, strict=True) if b.is_floating_point()]
    return max((float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in pairs), default=0.0)


def _refusal(found: str) -> str:
    return (
        f"The recorded ops must compute what the model computes on the inputs to learn from, but {found}. Values that "
        "steer the network (lengths of packed sequences, a number that is read from a tensor) are recorded as they "
        "were in random inputs like the example. Trace with an example in which they are all alike, and calibrate on "
        "inputs that have the same; or learn from none: `sned.apply` takes what `sned.plan` makes without calibration."
    )
