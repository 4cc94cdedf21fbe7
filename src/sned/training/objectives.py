"""What is minimised without a teacher: the loss of the labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from sned.errors import UserError
from sned.graph.example import called
from sned.training.data import Batch
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


def label_loss(recipe: Recipe, *, taught: bool) -> LabelLoss:
    """The label loss of a recipe; smoothed by default where there is no teacher."""
    asked = recipe.label_smoothing
    return LabelLoss(recipe, asked if asked is not None else 0.0 if taught else SMOOTHING)


def metric_of(recipe: Recipe) -> Metric:
    """The recipe's own metric, or the task's."""
    if recipe.metric is None:
        return recipe.found_task.metric
    return recipe.metric if isinstance(recipe.metric, Metric) else mean_metric(recipe.metric)
