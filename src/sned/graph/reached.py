"""Which labels a pass computes with: a table of positions may be longer than the example, and so read in part."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sned.graph.ir import BoolArray
from sned.graph.labels import Boxes
from sned.graph.recording import Recording

PASSING = frozenset(
    {"slice", "select", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unbind", "narrow",
     "view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "permute", "transpose", "t", "expand",
     "clone", "contiguous", "_to_copy", "alias", "detach", "lift_fresh"}
)  # fmt: skip
"""Ops that hand values on, or some of them; so does, here, what works on one tensor element by element."""


def mark_reached(found: BoolArray, recording: Recording, boxes: Mapping[int, Boxes]) -> None:
    """Set `found` at every label on a tensor that an op computes with, or that leaves the network."""
    read = set(recording.outputs)
    for op in recording.ops:
        if op.name not in PASSING and not (op.pointwise and len(op.inputs) == 1):
            read.update(op.inputs)
    for number in read:
        for box in boxes.get(number, ()):
            for labels in (box.ids, *box.slabs.values()):
                found[np.ravel(labels)] = True
