"""A real job in miniature: a residual CNN trained on scanned digits, ready to be pruned.

In: scikit-learn's handwritten digits. Out: images in three splits, and a network that reads them. No stage of
the house; the command `sned demo`, the documentation and the tests use it as their user's model.
"""

from sned.demo.data import Digits, Split, digits
from sned.demo.network import ResidualCNN, make_network
from sned.demo.training import accuracy, train, trained_network

__all__ = [
    "Digits",
    "ResidualCNN",
    "Split",
    "accuracy",
    "digits",
    "make_network",
    "train",
    "trained_network",
]
