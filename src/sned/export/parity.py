"""How far the outputs of two networks are apart: numpy only, so that any two runtimes can be compared."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Parity:
    """How well outputs agree with a reference, over one run or several.

    Attributes:
        max_abs_diff: largest absolute difference of any element; infinite where only one of them is finite.
        max_rel_diff: the same, over the largest finite magnitude in that output of the reference in any run: the
            answers of one run can all happen to be near zero, and the rounding of what they were made of is not.
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
    """Compare the outputs of one run one by one; both lists hold arrays of the same shapes.

    Elements that are the same infinity, or NaN in both, count as equal.
    """
    return compare_runs([(reference, got)])


def compare_runs(runs: Iterable[tuple[Sequence[Array], Sequence[Array]]]) -> Parity:
    """One `Parity` for several runs, each the outputs of the reference and those to be compared."""
    apart: list[_Apart] = []
    agreed = rows = 0
    for reference, got in runs:
        pairs = [(np.asarray(ours), np.asarray(theirs)) for ours, theirs in zip(reference, got, strict=True)]
        found = [_apart(ours, theirs) for ours, theirs in pairs]
        apart = [a.and_of(b) for a, b in zip(apart, found, strict=True)] if apart else found
        scores = next(((ours, theirs) for ours, theirs in pairs if has_classes(ours)), None)
        if scores:
            same = top1(scores[0]) == top1(scores[1])
            agreed, rows = agreed + int(np.sum(same)), rows + int(np.size(same))
    return Parity(
        max_abs_diff=max((each.absolute for each in apart), default=0.0),
        max_rel_diff=max((_over(each.absolute, each.magnitude) for each in apart), default=0.0),
        top1_agreement=agreed / rows if rows else None,
        rows=rows,
        error=max((_over(math.sqrt(each.apart), math.sqrt(each.size)) for each in apart), default=0.0),
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


@dataclass(frozen=True)
class _Apart:
    """One output: largest difference and largest magnitude, and the sums of squares of differences and of values."""

    absolute: float
    magnitude: float
    apart: float
    size: float

    def and_of(self, other: "_Apart") -> "_Apart":
        return _Apart(
            max(self.absolute, other.absolute),
            max(self.magnitude, other.magnitude),
            self.apart + other.apart,
            self.size + other.size,
        )


def _apart(reference: Array, got: Array) -> _Apart:
    wide = np.complex128 if np.iscomplexobj(reference) or np.iscomplexobj(got) else np.float64
    ours, theirs = reference.astype(wide), got.astype(wide)
    finite = np.isfinite(ours)
    magnitude, size = float(np.max(np.abs(ours), where=finite, initial=0.0)), _squares(ours[finite])
    if ours.shape != theirs.shape:
        return _Apart(math.inf, magnitude, math.inf, size)
    alike = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    both = finite & np.isfinite(theirs)
    if not np.all(alike | both):
        return _Apart(math.inf, magnitude, math.inf, size)
    differences = np.abs(ours[both] - theirs[both])
    return _Apart(float(np.max(differences, initial=0.0)), magnitude, _squares(differences), size)


def _squares(values: Array) -> float:
    return float(np.vdot(values, values).real)


def _over(difference: float, size: float) -> float:
    return difference / size if size else difference
