"""What is minimised without a teacher: the loss of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sned.errors import UserError
from sned.graph.example import called
from sned.training.data import Batch
from sned.training.parts import Objective
from sned.training.recipe import SMOOTHING, Recipe
from sned.training.tasks import Metric, mean_metric, users

LABEL = "labels"
"""Name of the term in logs."""


@dataclass(frozen=True, eq=False)
class LabelLoss:
    """The recipe's own loss, or the task's."""

    recipe: Recipe
    smoothing: float

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The loss on the batch's labels."""
        return {LABEL: self.of(called(model, batch.inputs), batch)}

    def weight(self, batch: Batch) -> Tensor | int:
        """How much the batch counts among others of one step: its targets that are not ignored, or its inputs."""
        counted = None if self.recipe.loss is not None else self.recipe.found_task.counted
        found = None if counted is None else counted(batch.targets)
        return batch.count if found is None else found

    def of(self, outputs: object, batch: Batch) -> Tensor:
        """The loss of outputs that are there already.

        Raises:
            UserError: the user's own loss failed, or gave no scalar.
        """
        own = self.recipe.loss
        if own is None:
            return self.recipe.found_task.loss(outputs, batch.targets, self.smoothing)
        loss = users("loss", own, outputs, batch.targets)
        if not isinstance(loss, Tensor) or loss.ndim:
            what = (
                f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            )
            raise UserError(f"`loss` must return a scalar tensor, a mean over the batch, got {what}.")
        return loss


def shares(objective: Objective, batches: Sequence[Batch]) -> Tensor:
    """What each of the batches of one step counts, `[batches]`, 1 in all."""
    weights = torch.stack([torch.as_tensor(objective.weight(batch)).float() for batch in batches])
    return weights / weights.sum().clamp(min=1)


def label_loss(recipe: Recipe, *, taught: bool) -> LabelLoss:
    """The label loss of a recipe; smoothed by default where there is no teacher."""
    asked = recipe.label_smoothing
    return LabelLoss(recipe, asked if asked is not None else 0.0 if taught else SMOOTHING)


def metric_of(recipe: Recipe) -> Metric:
    """The recipe's own metric, or the task's."""
    if recipe.metric is None:
        return recipe.found_task.metric
    return recipe.metric if isinstance(recipe.metric, Metric) else mean_metric(recipe.metric)
