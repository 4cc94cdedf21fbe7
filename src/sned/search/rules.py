"""What the user says of single groups, by name or pattern: how much goes, what stays, and which counts are
allowed."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sned.errors import NotFoundError, PlanError, close_names
from sned.graph.ir import Graph, Group, IntArray

Number = TypeVar("Number", int, float)

FIELDS = ("sparsity", "protect", "at_least", "multiple_of")
ROUNDING = 1e-9
"""A sparsity of 0.3 of 10 units is 3 of them, though 0.3 * 10 is a little less in floating point."""


@dataclass(frozen=True)
class Rules:
    """What a plan must respect, by names of groups or shell patterns (`layer1.*`).

    An exact name beats a pattern; among patterns the last that matches counts.

    Attributes:
        sparsity: fraction of units to remove, in [0, 1); such groups are no longer the search's to choose.
        protect: groups that stay whole.
        at_least: units to keep.
        multiple_of: the units kept must be a multiple of this, unless the group stays whole.

    Example:
        >>> Rules(sparsity={"layer1.*": 0.5}, protect=("conv1",), multiple_of={"*": 8})
    """

    sparsity: Mapping[str, float] = field(default_factory=dict)
    protect: Sequence[str] = ()
    at_least: Mapping[str, int] = field(default_factory=dict)
    multiple_of: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> Rules:
        """Read rules from a dict with any of the fields; a bare number counts for every group.

        Raises:
            PlanError: no dict, an unknown field, or a value of the wrong kind.
        """
        if not isinstance(data, Mapping):
            raise PlanError(
                f"Rules for groups must be a dict with fields such as `protect`, a TOML file with them, or "
                f"`sned.search.Rules`, got {type(data).__name__}."
            )
        for name in data:
            if name not in FIELDS:
                raise PlanError(f"Rules for groups have no field {name!r}. {close_names(name, FIELDS)}")
        return Rules(
            sparsity=_numbers("sparsity", data.get("sparsity", {})),
            protect=_names(data.get("protect", ())),
            at_least=_whole("at_least", data.get("at_least", {})),
            multiple_of=_whole("multiple_of", data.get("multiple_of", {})),
        )

    @staticmethod
    def from_toml(path: Path) -> Rules:
        """Read rules from a TOML file with the same fields.

        Raises:
            NotFoundError: there is no such file.
            PlanError: it is not valid TOML, or not valid rules.
        """
        try:
            return Rules.from_data(tomllib.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise NotFoundError(f"The file with rules for groups, '{path}', does not exist.") from error
        except OSError as error:
            raise NotFoundError(
                f"The file with rules for groups, '{path}', cannot be read: {error.strerror}."
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PlanError(f"'{path}' must be TOML, but reading it failed: {error}.") from error

    def choices(self, graph: Graph) -> tuple[IntArray, ...]:
        """For every group the counts of units that may be kept, from all of them downwards.

        Raises:
            PlanError: a name that fits no group, a value out of its range, or rules that leave a group no
                choice.
        """
        _check_names(graph, [*self.sparsity, *self.protect, *self.at_least, *self.multiple_of])
        _check_values(graph, self)
        _check_contradictions(graph, self)
        return tuple(self._choices(group) for group in graph.groups)

    def held_back(self, graph: Graph, sparsity: float | None = None) -> tuple[HeldBack, ...]:
        """Groups that keep more units than their sparsity asks for, because other rules do.

        Args:
            graph: of the network.
            sparsity: of groups to which the rules give none.
        """
        found = []
        for group in graph.groups:
            own = lookup(self.sparsity, group.name)
            fraction = (sparsity or 0.0) if own is None else own
            ladders = (_counts(group), self._allowed(group))
            asked, kept = (int(ladder[uniform_level(ladder, fraction)]) for ladder in ladders)
            if kept > asked:
                found.append(HeldBack(group, asked, kept, self._others(group)))
        return tuple(found)

    def _choices(self, group: Group) -> IntArray:
        allowed = self._allowed(group)
        sparsity = lookup(self.sparsity, group.name)
        if sparsity is None:
            return allowed
        level = uniform_level(allowed, sparsity)
        return allowed[level : level + 1]

    def _allowed(self, group: Group) -> IntArray:
        """What may be kept whatever the sparsity."""
        counts = _counts(group)
        if self._protects(group):
            return counts[:1]
        multiple = lookup(self.multiple_of, group.name) or 1
        least = min(lookup(self.at_least, group.name) or 1, group.size)
        allowed: IntArray = counts[((counts % multiple == 0) & (counts >= least)) | (counts == group.size)]
        return allowed

    def _protects(self, group: Group) -> bool:
        return any(matches(pattern, group.name) for pattern in self.protect)

    def _others(self, group: Group) -> str:
        """The rules for a group beside its sparsity, in words."""
        if self._protects(group):
            return "`protect`"
        named = {"at_least": self.at_least, "multiple_of": self.multiple_of}
        values = {name: lookup(counts, group.name) for name, counts in named.items()}
        return " and ".join(f"`{name}` {value}" for name, value in values.items() if value is not None)


@dataclass(frozen=True, eq=False)
class HeldBack:
    """A group that keeps `kept` units where its sparsity asks for `asked`, because of `others`, rules in words."""

    group: Group
    asked: int
    kept: int
    others: str

    def __str__(self) -> str:
        return f"{self.group.name!r} keeps {self.kept} of {self.group.size} units, not {self.asked} ({self.others})"


def listed(held_back: Sequence[HeldBack], *, limit: int = 4) -> str:
    """The first of them in words."""
    more = f"; and {len(held_back) - limit} more" if len(held_back) > limit else ""
    return "; ".join(map(str, held_back[:limit])) + more


def _counts(group: Group) -> IntArray:
    counts: IntArray = np.arange(group.size, 0, -group.cell_count, dtype=np.int64)
    return counts


def uniform_level(kept: IntArray, sparsity: float) -> int:
    """Index into descending counts `kept`: the fewest units that are at least `1 - sparsity` of the first."""
    wanted = kept[0] * (1.0 - sparsity) - ROUNDING * kept[0]
    return int(np.flatnonzero(kept >= wanted)[-1])


def matches(pattern: str, name: str) -> bool:
    """Whether a name or shell pattern means the group `name`."""
    return pattern == name or fnmatchcase(name, pattern)


def lookup(values: Mapping[str, Number], name: str) -> Number | None:
    """The value for a group: by its name, else by the last pattern that fits it, else None."""
    fitting = [value for pattern, value in values.items() if fnmatchcase(name, pattern)]
    return values.get(name, fitting[-1] if fitting else None)


def _check_names(graph: Graph, patterns: Iterable[str]) -> None:
    names = [group.name for group in graph.groups]
    for pattern in patterns:
        if any(matches(pattern, name) for name in names):
            continue
        raise PlanError(
            f"Rules for groups name {pattern!r}, which is no group. {_where(graph, pattern, names)}"
        )


def _where(graph: Graph, name: str, names: Sequence[str]) -> str:
    for group in graph.groups:
        if any(s.parameter.rpartition(".")[0] == name for s in group.slices if s.output):
            return f"Its outputs go together with those of {group.name!r}: name that group instead."
    for frozen in graph.frozen:
        if frozen.name == name:
            return f"Its {frozen.size} outputs cannot be cut: {frozen.reason}."
    made = -1 if graph.recorded.outputs_last else 0
    shapes = [graph.tensors[n].shape for p, n in graph.parameters.items() if p.rpartition(".")[0] == name]
    if any(len(shape) > 1 and shape[made] == 1 for shape in shapes):
        return "It has a single unit, which stays."
    return close_names(name, names)


def _check_values(graph: Graph, rules: Rules) -> None:
    for pattern, fraction in rules.sparsity.items():
        if not 0 <= fraction < 1:
            raise PlanError(f"`sparsity` must be in [0, 1), got {fraction:g} for {pattern!r}.")
    for name, counts in (("at_least", rules.at_least), ("multiple_of", rules.multiple_of)):
        for pattern, count in counts.items():
            if count < 1:
                raise PlanError(f"`{name}` must be at least 1, got {count} for {pattern!r}.")
            largest = max(group.size for group in graph.groups if matches(pattern, group.name))
            if name == "at_least" and count > largest:
                raise PlanError(
                    f"`at_least` asks to keep {count} units of {pattern!r}, which has {largest}. "
                    f"Ask for at most {largest}, or protect it."
                )


def _check_contradictions(graph: Graph, rules: Rules) -> None:
    """A sparsity that is asked of one group by its name must not be taken back by another rule, nor all of them."""
    for group in graph.groups:
        fraction = rules.sparsity.get(group.name)
        if not fraction:
            continue
        protected = next((p for p in rules.protect if matches(p, group.name)), None)
        if protected is not None:
            raise PlanError(
                f"{group.name!r} cannot both lose units and stay whole, but `sparsity` asks for {fraction:g} of it and "
                f"`protect` names {protected!r}. Leave one of them out."
            )
        least = rules.at_least.get(group.name, 1)
        if least > math.ceil(group.size * (1 - fraction) - ROUNDING * group.size):
            raise PlanError(
                f"`sparsity` asks {fraction:g} of the {group.size} units of {group.name!r} to go, and `at_least` "
                f"{least} of them to stay. Lower one of them."
            )
    held_back = rules.held_back(graph)
    if held_back and all(rules._choices(group)[0] == group.size for group in graph.groups):
        raise PlanError(
            "Something must be left of what `sparsity` asks to go, but other rules keep all of it: "
            f"{listed(held_back)}. Leave one of them out."
        )


def _table(name: str, value: object) -> Mapping[str, object]:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"*": value}
    raise PlanError(
        f"`{name}` must be a number, or a table from group names or patterns to numbers, got {value!r}."
    )


def _numbers(name: str, value: object) -> dict[str, float]:
    table = _table(name, value)
    for pattern, number in table.items():
        if not isinstance(pattern, str):
            raise PlanError(f"`{name}` is told by names of groups or patterns, got {pattern!r}.")
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise PlanError(f"`{name}` must be a number, got {number!r} for {pattern!r}.")
    return {pattern: float(number) for pattern, number in table.items() if isinstance(number, int | float)}


def _whole(name: str, value: object) -> dict[str, int]:
    numbers = _numbers(name, value)
    for pattern, number in numbers.items():
        if number != int(number):
            raise PlanError(f"`{name}` must be a whole number, got {number:g} for {pattern!r}.")
    return {pattern: int(number) for pattern, number in numbers.items()}


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise PlanError(f"`protect` must be a list of group names or patterns, got {value!r}.")
