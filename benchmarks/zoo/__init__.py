"""The networks that `benchmarks.coverage` prunes: how each is built, and how it is called.

Four collections: torchvision's classifiers, the smallest network of each of timm's model modules,
architectures of transformers built small from their configurations, and others. None has trained weights.
"""

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.zoo import others, timm_models, transformers_models, vision
from benchmarks.zoo.network import Network
from sned.errors import NotFoundError, close_names

__all__ = ["COLLECTIONS", "Collection", "Network", "find", "networks"]


@dataclass(frozen=True)
class Collection:
    """A list of networks, and the share of parameters that may remain at 50 % of every group, in (0, 1]."""

    networks: Callable[[], list[Network]]
    limit: float
    outside_embeddings: bool = False
    """Whether embedding tables are left out of the share."""


COLLECTIONS = {
    "torchvision": Collection(vision.classifiers, 0.45),
    "timm": Collection(timm_models.smallest, 0.60),
    "transformers": Collection(transformers_models.small, 0.60, outside_embeddings=True),
    "others": Collection(lambda: [*vision.dense_predictors(), *others.own()], 1.0),
}


def networks(collections: Iterable[str], patterns: Sequence[str] = ("*",)) -> list[Network]:
    """Every network of the named collections whose name matches one of the patterns, such as `resnet*`.

    Raises:
        NotFoundError: nothing matches.
    """
    listed = [network for name in collections for network in COLLECTIONS[name].networks()]
    matching = [n for n in listed if any(fnmatch.fnmatchcase(n.name, pattern) for pattern in patterns)]
    if not matching:
        asked = " or ".join(map(repr, patterns))
        close = close_names(patterns[0], [network.name for network in listed])
        raise NotFoundError(f"No network is called {asked}. {close}")
    return matching


def find(collection: str, name: str) -> Network:
    """One network by its exact name.

    Raises:
        NotFoundError: there is none of that name.
    """
    return networks([collection], [name])[0]
