"""Who gives the numbers at which the code cuts an axis: its size, attributes, or the code itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sned.graph.formulas import Attribute
from sned.graph.ir import Op
from sned.graph.provenance import Use

CUTTING = ("slice", "split_with_sizes", "unsafe_split_with_sizes")
"""Ops that cut an axis at numbers of their own."""


class Origins:
    """Tells of a cut what it asks of the axis.

    Args:
        ops: of a recording.
        uses: the numbers in its calls that come from attributes and sizes.
    """

    def __init__(self, ops: Sequence[Op], uses: Sequence[Use]) -> None:
        self._uses: dict[int, list[Use]] = {}
        for use in uses:
            for op in ops[use.first_op : use.last_op]:
                if op.name in CUTTING:
                    self._uses.setdefault(op.index, []).append(use)

    def beside(self, op: Op, kept: Mapping[int, slice], cuts: Sequence[int]) -> list[slice] | None:
        """The ranges of an axis that numbers in the code ask to stay, where its parts keep no proportion.

        `cuts` are the numbers at which `op` cuts, `kept` the range that each of them asks for. None where one was
        worked out from the size of an axis: then the parts follow that size.
        """
        held = self._uses.get(op.index, ())
        found = []
        for place, number in enumerate(cuts):
            uses = [use for use in held if use.value == number]
            if any(not isinstance(source, Attribute) for use in uses for source in use.formula.sources):
                return None
            if not uses or len(uses) < uses[0].given.count(number):
                found.append(kept[place])
        return found
