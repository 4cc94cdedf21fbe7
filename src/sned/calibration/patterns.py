"""Which entries of a matrix may stay: single ones, N of every M, or whole blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from sned.errors import PlanError

SINGLE = "weight"

_PATTERN = re.compile(r"(?P<n>\d+):(?P<m>\d+)|(?P<rows>\d+)x(?P<columns>\d+)")


@dataclass(frozen=True)
class Pattern:
    """A granularity inside tensors.

    Attributes:
        name: "weight", "2:4" (two of every four along the contracted axis stay), or "1x4" (blocks of outputs x inputs).
        keep, of: N and M; 0 for the others.
        rows, columns: of a block; 1 x 1 for single weights.

    Reference: Mishra et al., Accelerating Sparse Deep Neural Networks, 2021 (N:M).
    """

    name: str
    keep: int = 0
    of: int = 0
    rows: int = 1
    columns: int = 1

    @staticmethod
    def parse(text: str) -> Pattern:
        """The pattern of a name.

        Raises:
            PlanError: it is not "weight", "N:M" with 0 < N < M, or "RxC".
        """
        if text == SINGLE:
            return Pattern(text)
        found = _PATTERN.fullmatch(text) if isinstance(text, str) else None
        held = {name: int(number) for name, number in (found.groupdict() if found else {}).items() if number}
        if 0 < held.get("n", 0) < held.get("m", 0):
            return Pattern(text, keep=held["n"], of=held["m"])
        if held.get("rows", 0) * held.get("columns", 0) > 1:
            return Pattern(text, rows=held["rows"], columns=held["columns"])
        raise PlanError(
            "A pattern of zeros is 'weight' (single ones), 'N:M' such as '2:4' (N of every M inputs stay, N < M), "
            f"or a block of outputs and inputs such as '1x4', got {text!r}."
        )

    @property
    def fixed(self) -> float | None:
        """The share of zeros where the pattern gives it: 1 - N / M."""
        return 1 - self.keep / self.of if self.of else None

    def share(self, sparsity: float | None) -> float:
        """The share of zeros that is asked for, or that the pattern gives.

        Raises:
            PlanError: no sparsity where the pattern needs one, or one that contradicts it.
        """
        number = isinstance(sparsity, int | float) and not isinstance(sparsity, bool)
        if sparsity is None and self.fixed is not None:
            return self.fixed
        if sparsity is None or not number or not 0 < sparsity < 1:
            raise PlanError(
                f"`sparsity` is the share of weights that become zero, a number in (0, 1), got {sparsity!r}."
            )
        if self.fixed is not None and abs(sparsity - self.fixed) > 1e-6:
            raise PlanError(
                f"The pattern {self.name} makes {self.fixed:.0%} of the weights zero, but {sparsity:.0%} was "
                "asked. Leave the sparsity out, or take another pattern."
            )
        return sparsity

    def pooled(self, loss: Tensor) -> Tensor:
        """What each thing that leaves whole is worth: `[outputs, channels, window]` to blocks of the same rank."""
        rows, columns = -loss.shape[0] % self.rows, -loss.shape[1] % self.columns
        padded = torch.nn.functional.pad(loss, (0, 0, 0, columns, 0, rows))
        shape = (padded.shape[0] // self.rows, self.rows, padded.shape[1] // self.columns, self.columns, -1)
        return padded.reshape(shape).sum((1, 3))

    def choose(self, loss: Tensor, density: float) -> Tensor:
        """Which entries stay.

        Args:
            loss: `[outputs, channels, window]`, at least 0: what losing each entry costs.
            density: share that stays, in (0, 1]; of every M where the pattern is N:M (rounded up, at least N).

        Returns:
            bool, like `loss`. Channels beyond the last whole M stay.
        """
        if self.of:
            return self._of_every(loss, max(self.keep, round(density * self.of + 0.49)))
        worth = self.pooled(loss)
        count = min(max(round(density * worth.numel()), 1), worth.numel())
        stay = torch.zeros(worth.numel(), dtype=torch.bool, device=loss.device)
        stay[worth.flatten().topk(count).indices] = True
        whole = stay.reshape(worth.shape).repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)
        return whole[: loss.shape[0], : loss.shape[1]]

    def _of_every(self, loss: Tensor, keep: int) -> Tensor:
        outputs, channels, window = loss.shape
        whole = channels // self.of * self.of
        stay = torch.ones_like(loss, dtype=torch.bool)
        parts = loss[:, :whole].reshape(outputs, -1, self.of, window)
        chosen = torch.zeros_like(parts, dtype=torch.bool)
        chosen.scatter_(2, parts.topk(min(keep, self.of), dim=2).indices, value=True)
        stay[:, :whole] = chosen.reshape(outputs, whole, window)
        return stay
