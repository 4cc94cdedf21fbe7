"""What is asked: how much a network may cost, absolutely or relative to what it costs now."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, model_validator

from sned.devices.profile import Dtype, Runtime
from sned.errors import BudgetError, close_names

AMOUNTS = ("latency_ms", "energy_mj", "size_bytes", "macs", "parameters", "peak_memory_bytes")
"""What a budget can limit; `limits` knows these names, and so does `Costs`."""

PER_DEVICE = ("latency_ms", "energy_mj")
"""Those of them that differ between devices."""

ON = "@"
"""Between the name of an amount and that of a device of a set: "latency_ms@pixel-9"."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"


def _amount(value: Any, info: ValidationInfo) -> float | str | None:
    """A number above zero, or what remains as a canonical "50%"."""
    name = info.field_name
    rule = f'`{name}` must be a number above 0, or say what remains of it, such as "50%" or "2x" (half)'
    if value is None:
        return None
    if isinstance(value, str):
        share = _share(value)
        if share is not None:
            if not 0 < share <= 1:
                raise BudgetError(f"{rule}; got {value!r}, which is not between 0% and 100%.")
            return f"{share * 100:.12g}%"
        if not re.fullmatch(_NUMBER, value.strip(), re.IGNORECASE):
            raise BudgetError(f"{rule}; got {value!r}.")
    return _number(value, rule)


def _number(value: Any, rule: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real | str):
        raise BudgetError(f"{rule}; got {value!r}.")
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number) or number <= 0:
        raise BudgetError(f"{rule}; got {value!r}.")
    return number


def _share(text: str) -> float | None:
    """What remains, as a fraction, of "50%" or "2x"; None for anything else."""
    found = re.fullmatch(rf"({_NUMBER})\s*(%|x|×)", text.strip(), re.IGNORECASE)
    if found is None:
        return None
    number = float(found[1])
    if found[2] == "%":
        return number / 100
    return 1 / number if number else math.inf


def _fraction(value: Any, info: ValidationInfo) -> float | None:
    meaning = {
        "sparsity": "the fraction of units to remove in each group, such as 0.5",
        "max_loss": "how much may be lost of what `evaluate` returns, such as 0.01 for a point of accuracy",
    }[str(info.field_name)]
    rule = f"`{info.field_name}` must be in [0, 1): {meaning}"
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(_NUMBER, value.strip(), re.IGNORECASE):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise BudgetError(f"{rule}; got {value!r}.")
    return float(value)


def _at_least_one(value: Any, info: ValidationInfo) -> int:
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise BudgetError(f"`{info.field_name}` must be a whole number of at least 1, got {value!r}.")
    return int(value)


def _devices(value: Any) -> str:
    """Names and paths as one text, with commas between them."""
    parts = value if isinstance(value, list | tuple) else [value]
    if not parts or not all(isinstance(part, str | Path) for part in parts):
        raise BudgetError(
            "`device` must be the name of a device or a set, or the path of a profile (.toml), or several of these, "
            f"got {value!r}."
        )
    return ",".join(map(str, parts))


Amount = Annotated[float | str | None, BeforeValidator(_amount)]
Fraction = Annotated[float | None, BeforeValidator(_fraction)]
Whole = Annotated[int, BeforeValidator(_at_least_one)]
Devices = Annotated[str, BeforeValidator(_devices)]


class Budget(BaseModel):
    """What a pruned network may cost, on which device, and how it runs there.

    Each amount is absolute (a number) or relative: "50%" is what remains, and so is "2x" (a half). All that
    are given must be met.

    Attributes:
        latency_ms: time of one run.
        energy_mj: energy of one run, millijoules.
        size_bytes: size of the exported file.
        macs: multiply-accumulates of one run.
        parameters: number of parameters.
        peak_memory_bytes: of the activations held at once; weights are `size_bytes`.
        sparsity: fraction of the units of each group to remove, in [0, 1); instead of all amounts.
        max_loss: how much of the figure that `evaluate` returns may be lost, in [0, 1).
        device: name of a device in the catalogue, or of a set, or the path of a profile (.toml), or several of these
            with commas or in a list: the budget must then hold on every one, and a relative latency is each one's own.
        runtime: that runs the network there.
        batch: inputs at once, at least 1.
        threads: inside an op, at least 1.
        dtype: of weights and activations. Only float32 is measured; others are estimated.

    Raises:
        BudgetError: nothing is asked, a value cannot be, or two contradict each other.

    Example:
        >>> Budget(latency_ms="50%", macs=2e9).limits({"latency_ms": 8.0, "macs": 4e9})
        {'latency_ms': 4.0, 'macs': 2000000000.0}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency_ms: Amount = None
    energy_mj: Amount = None
    size_bytes: Amount = None
    macs: Amount = None
    parameters: Amount = None
    peak_memory_bytes: Amount = None
    sparsity: Fraction = None
    max_loss: Fraction = None
    device: Devices = "host"
    runtime: Runtime = "onnxruntime"
    batch: Whole = 1
    threads: Whole = 1
    dtype: Dtype = "float32"

    def __init__(self, *unnamed: Any, **fields: Any) -> None:
        if unnamed:
            raise BudgetError(
                f"A budget must say what it limits, got {unnamed[0]!r} alone. "
                'Name it, such as `Budget(latency_ms="50%")`.'
            )
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise BudgetError(_worded(error)) from error

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.amounts and self.sparsity is None and self.max_loss is None:
            raise BudgetError(
                "A budget must ask for something. Give an amount that may remain, such as `latency_ms=8` or "
                '`macs="50%"`, or `sparsity`, or `max_loss`.'
            )
        if self.amounts and self.sparsity is not None:
            raise BudgetError(
                f"`sparsity` says how much goes, so nothing else can, got sparsity={self.sparsity:g} and "
                f"{_shown(self.amounts)}. Give one or the other."
            )
        if self.sparsity is not None and self.max_loss is not None:
            raise BudgetError(
                f"`sparsity` says how much goes, whatever is lost, got sparsity={self.sparsity:g} and "
                f"max_loss={self.max_loss:g}. Give one or the other."
            )
        return self

    @property
    def amounts(self) -> dict[str, float | str]:
        """The amounts that are limited, as given: a number, or what remains as "50%"."""
        return {name: value for name in AMOUNTS if (value := getattr(self, name)) is not None}

    def limits(self, dense: Mapping[str, float]) -> dict[str, float]:
        """Resolve the amounts to absolute ones.

        Args:
            dense: what the network costs unpruned, by the names of the amounts; on a set of devices also by
                "latency_ms@pixel-9".

        Returns:
            The largest value allowed of each amount that is limited; on a set, of each device.

        Raises:
            BudgetError: an amount is limited that `dense` does not tell (missing or nan).
        """
        missing = [name for name in self.amounts if not math.isfinite(dense.get(name, math.nan))]
        if missing:
            told = ", ".join(f"`{name}`" for name in AMOUNTS if math.isfinite(dense.get(name, math.nan)))
            raise BudgetError(
                f"`{missing[0]}` cannot be budgeted on '{self.device}' yet: no model tells it. "
                f"Limit one of {told or 'nothing'} instead."
            )
        return {
            place: _resolved(value, dense[place])
            for name, value in self.amounts.items()
            for place in _places(name, dense)
        }

    def __str__(self) -> str:
        asked = _shown(self.amounts) if self.amounts else ""
        others = {"sparsity": self.sparsity, "max_loss": self.max_loss}
        more = ", ".join(f"{name}={value:g}" for name, value in others.items() if value is not None)
        return ", ".join(part for part in (asked, more) if part) + f" on {self.device}"


def _places(name: str, dense: Mapping[str, float]) -> list[str]:
    """Where an amount is limited: on every device of a set, if it is one that differs between them."""
    members = [place for place in dense if place.startswith(f"{name}{ON}")]
    return members if members and name in PER_DEVICE else [name]


def _resolved(value: float | str, dense: float) -> float:
    return dense * float(value.removesuffix("%")) / 100 if isinstance(value, str) else value


def _shown(amounts: Mapping[str, float | str]) -> str:
    return ", ".join(
        f"{name}={value if isinstance(value, str) else f'{value:g}'}" for name, value in amounts.items()
    )


def _worded(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "budget"
    if first["type"] == "extra_forbidden":
        return f"A budget has no field `{name}`. {close_names(name, Budget.model_fields)}"
    if first["type"] == "literal_error":
        return f"`{name}` must be {first['ctx']['expected']}, got {first['input']!r}."
    return f"`{name}`: {first['msg'][:1].lower()}{first['msg'][1:]}, got {first['input']!r}."
