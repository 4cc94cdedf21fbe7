"""The networks that `benchmarks.coverage` prunes: how each is built, and how it is called.

Four collections: torchvision's classifiers, the smallest network of each of timm's model modules,
architectures of transformers built small from their configurations, and others. None has trained weights.
"""

import fnmatch
from collections.abc import Callable, Iterable
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


def networks(collections: Iterable[str], pattern: str = "*") -> list[Network]:
    """Every network of the named collections whose name matches a pattern such as `resnet*`.

    Raises:
        NotFoundError: nothing matches.
    """
    listed = [network for name in collections for network in COLLECTIONS[name].networks()]
    matching = [network for network in listed if fnmatch.fnmatchcase(network.name, pattern)]
    if not matching:
        raise NotFoundError(
            f"No network is called '{pattern}'. {close_names(pattern, [n.name for n in listed])}"
        )
    return matching


def find(collection: str, name: str) -> Network:
    """One network by its exact name.

    Raises:
        NotFoundError: there is none of that name.
    """
    return networks([collection], name)[0]
