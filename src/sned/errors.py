"""Everything sned raises on purpose, and how it words a wrong name."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, ClassVar


class SnedError(Exception):
    """Root of every error that sned raises on purpose; its text is one paragraph that says what to do."""

    exit_code: ClassVar[int] = 1


class UserError(SnedError):
    """What was asked cannot be done as asked; the text says how to ask instead. Exit code 2 in a shell."""

    exit_code: ClassVar[int] = 2


class BudgetError(UserError):
    """A budget is empty, contradicts itself, or lies below what is reachable."""


class DeviceError(UserError):
    """A device is not in the catalogue, or its profile is not valid."""


class ModelError(UserError):
    """A model does not run on its example, holds NaN weights, or does what sned cannot follow."""


class ExampleError(UserError):
    """Example inputs are missing, empty, or not of the shape that the model takes."""


class CalibrationError(UserError):
    """Calibration batches are missing, empty, labelled, or of another shape than the example."""


class PlanError(UserError):
    """A plan was made for another network, names what is not there, or removes what must stay."""


class CheckpointError(UserError):
    """A checkpoint is damaged, or was saved from another network."""


class NotFoundError(UserError):
    """A file, a module or an attribute that was named does not exist."""


class WriteError(UserError):
    """A file could not be written: the disk is full, or the place is not writable."""


class ExportError(SnedError):
    """A network could not be exported, or the exported file does not compute what the network does."""


class SurgeryError(SnedError):
    """A pruned network does not compute what its plan promises; it was not handed over."""


class TrainingError(SnedError):
    """Training could not go on; what was reached is kept.

    Attributes:
        kept: the result up to then (`sned.training.Tuned`), where there is one.
    """

    kept: Any = None


class MeasureError(SnedError):
    """A measurement could not be taken, or means nothing."""


def close_names(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Say which of `known` was probably meant by `name`, as a sentence to end an error with.

    Args:
        name: what was asked for.
        known: the names that exist.
        limit: how many close names to offer, at least 1; four times as many are listed when none is close.

    Returns:
        "Did you mean 'a' or 'b'?", or else "Known: a, b, c.", or "None are known.".
    """
    names = sorted(set(known))
    by_folded = {candidate.casefold(): candidate for candidate in names}
    close = get_close_matches(name.casefold(), by_folded, n=limit, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(repr(by_folded[match]) for match in close)}?"
    if not names:
        return "None are known."
    shown = names[: 4 * limit]
    more = f", … ({len(names)} in all)" if len(names) > len(shown) else ""
    return f"Known: {', '.join(shown)}{more}."
