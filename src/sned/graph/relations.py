"""What flowing labels noted of each other, for `coupling.py` to solve all at once.

- *same*: two labels are one channel;
- *together*: labels that must leave together, although each can also leave in another way;
- *slab*: a label (a head, a group) that takes others with it when it goes;
- *cells*: rows of labels that must lose equally many, unless one leaves whole with its slab; loose ones do where they
  are alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sned.graph.ir import IntArray


@dataclass(frozen=True)
class Why:
    """The op that fixed some labels, and the reason."""

    op: str
    module: str
    reason: str


@dataclass(frozen=True)
class Cells:
    """Rows of labels `[rows, size]` that must lose equally many.

    `owners` `[rows, slabs]` are the labels of the slabs that a row lies on: with one of them it leaves as a whole.
    Loose rows that are not alike may lose what they like, where the labels `instead` stay; None: rows are not loose.
    """

    rows: IntArray
    owners: IntArray
    instead: IntArray | None = None


@dataclass
class Relations:
    """What the flow found out about its labels; the input of `coupling.solve`."""

    count: int = 0
    same: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    together: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    slabs: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    cells: list[Cells] = field(default_factory=list)
    frozen: list[tuple[IntArray, Why]] = field(default_factory=list)
    inexact: list[IntArray] = field(default_factory=list)
    products: dict[tuple[bytes, ...], IntArray] = field(default_factory=dict)
