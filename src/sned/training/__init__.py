"""Win the accuracy back: train what the other stages made, with a teacher, on a schedule, from a checkpoint.

In: a network (pruned, masked, repaired or whole) and labelled data. Out: the network trained, and its history.
"""

from sned.training.cycles import Cycled, prune_in_cycles, rewound
from sned.training.distillation import Distillation
from sned.training.finetune import Tuned, finetune
from sned.training.logs import Epoch
from sned.training.masking import GradualMasks
from sned.training.parts import Part, Trained
from sned.training.penalties import GroupLasso, GrowingPenalty, Slimming
from sned.training.recipe import Recipe
from sned.training.tasks import TASKS, Metric, Task

__all__ = [
    "TASKS",
    "Cycled",
    "Distillation",
    "Epoch",
    "GradualMasks",
    "GroupLasso",
    "GrowingPenalty",
    "Metric",
    "Part",
    "Recipe",
    "Slimming",
    "Task",
    "Trained",
    "Tuned",
    "finetune",
    "prune_in_cycles",
    "rewound",
]
