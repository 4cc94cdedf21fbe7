"""Act on a plan: what can be cut is rehearsed, a smaller network of the same class is made on a copy and verified.

In: a model and an example (`trace`), a model and a plan (`apply`). Out: the graph, the pruned network; `save`, `load`.
"""

from sned.surgery.checkpoint import load, save
from sned.surgery.depth import without
from sned.surgery.masks import burn_in, masks_of
from sned.surgery.probe import trace
from sned.surgery.pytorch import apply

__all__ = ["apply", "burn_in", "load", "masks_of", "save", "trace", "without"]
