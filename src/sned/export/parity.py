"""How far two lists of outputs are apart: numpy only, so that any two runtimes can be compared."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Parity:
    """How well outputs agree with a reference.

    Attributes:
        max_abs_diff: largest absolute difference of any element; infinite where only one of them is finite.
        max_rel_diff: the same, over the largest finite magnitude in that output of the reference.
        top1_agreement: fraction in [0, 1] of rows whose largest element is the same one, in the first output
            with classes; None where no output has classes.
        rows: how many such rows were compared.
        error: root mean square of the difference over that of the reference, the worst of the outputs.
    """

    max_abs_diff: float
    max_rel_diff: float
    top1_agreement: float | None
    rows: int = 0
    error: float = 0.0

    def within(self, tolerance: float) -> bool:
        """Whether no element is further off than `tolerance` times the largest magnitude in its output.

        A hundredth of `tolerance` is allowed in absolute terms: outputs that cancel to almost nothing carry
        the rounding of what they were made of.
        """
        return self.max_rel_diff <= tolerance or self.max_abs_diff <= tolerance / 100


def compare(reference: Sequence[Array], got: Sequence[Array]) -> Parity:
    """Compare outputs one by one; both lists hold arrays of the same shapes.

    Elements that are the same infinity, or NaN in both, count as equal.
    """
    pairs = [(np.asarray(ours), np.asarray(theirs)) for ours, theirs in zip(reference, got, strict=True)]
    differences = [_differences(ours, theirs) for ours, theirs in pairs]
    classes = next(((ours, theirs) for ours, theirs in pairs if has_classes(ours)), None)
    same = top1(classes[0]) == top1(classes[1]) if classes else np.zeros(0, bool)
    return Parity(
        max_abs_diff=max((absolute for absolute, _ in differences), default=0.0),
        max_rel_diff=max((relative for _, relative in differences), default=0.0),
        top1_agreement=float(same.mean()) if same.size else None,
        rows=int(same.size),
        error=max((_relative_error(ours, theirs) for ours, theirs in pairs), default=0.0),
    )


def worst(parities: Iterable[Parity]) -> Parity:
    """One `Parity` for several comparisons: the largest differences, the agreement over all of their rows."""
    all_ = list(parities)
    voted = [parity for parity in all_ if parity.top1_agreement is not None]
    rows = sum(parity.rows for parity in voted)
    agreed = sum((parity.top1_agreement or 0.0) * parity.rows for parity in voted)
    return Parity(
        max_abs_diff=max((parity.max_abs_diff for parity in all_), default=0.0),
        max_rel_diff=max((parity.max_rel_diff for parity in all_), default=0.0),
        top1_agreement=agreed / rows if rows else None,
        rows=rows,
        error=max((parity.error for parity in all_), default=0.0),
    )


def has_classes(output: Array) -> bool:
    """Whether an output looks like scores of classes: real numbers, a batch axis, and more than one score."""
    real = np.issubdtype(output.dtype, np.floating)
    return real and output.ndim >= 2 and output.shape[_class_axis(output)] > 1


def top1(output: Array) -> npt.NDArray[np.intp]:
    """The class of each row (of each pixel of `[batch, classes, height, width]`, each position otherwise)."""
    classes: npt.NDArray[np.intp] = np.argmax(output, axis=_class_axis(output))
    return classes


def rows_of_classes(output: Array) -> Array:
    """Scores as `[rows, classes]`, one row for each class that `top1` tells; other outputs as one row of numbers."""
    if not has_classes(output):
        return output.reshape(-1)
    last = np.moveaxis(output, _class_axis(output), -1)
    return last.reshape(-1, last.shape[-1])


def _class_axis(output: Array) -> int:
    return 1 if output.ndim in (4, 5) else -1


def _differences(reference: Array, got: Array) -> tuple[float, float]:
    """Largest absolute difference, and that over the largest finite magnitude of the reference."""
    if reference.shape != got.shape:
        return float("inf"), float("inf")
    if not reference.size:
        return 0.0, 0.0
    wide = np.complex128 if np.iscomplexobj(reference) or np.iscomplexobj(got) else np.float64
    ours, theirs = reference.astype(wide), got.astype(wide)
    alike = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    finite = np.isfinite(ours) & np.isfinite(theirs)
    if not np.all(alike | finite):
        return float("inf"), float("inf")
    apart = finite & ~alike
    absolute = float(np.max(np.abs(ours[apart] - theirs[apart]), initial=0.0))
    magnitude = float(np.max(np.abs(ours), where=finite, initial=0.0))
    return absolute, absolute / magnitude if magnitude else absolute


def _relative_error(reference: Array, got: Array) -> float:
    """`||got - reference|| / ||reference||` over finite elements; infinite where only one of two is finite."""
    if reference.shape != got.shape:
        return float("inf")
    real = not (np.iscomplexobj(reference) or np.iscomplexobj(got))
    ours, theirs = (array.astype(np.float64 if real else np.complex128) for array in (reference, got))
    if not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return float("inf")
    finite = np.isfinite(ours)
    apart, size = np.linalg.norm(ours[finite] - theirs[finite]), np.linalg.norm(ours[finite])
    return float(apart / size) if size else float(apart)
