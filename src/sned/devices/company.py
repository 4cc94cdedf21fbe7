"""What ops lose in company: alone, over and over, an op finds all it reads in the nearest cache; in a network not.

Small synthetic networks are timed whole, and each of their ops alone in the same rounds. What a network takes longer
than its ops, far-away weights counted, is put down to their number and to the bytes that they read and write, those
that the nearest caches hold and those beyond, by least squares, for each way in which a runtime keeps its data. With
several threads the near ones cost more: what one core wrote another reads. Those beyond come from further away than
alone: a network writes into memory that it used some ops ago.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from onnx import ModelProto
from scipy.optimize import nnls

from sned.devices.cold import BYTES, HAVE_WEIGHTS, Cold, fetched_us
from sned.devices.demand import demand
from sned.devices.design import Shape, shape_of, sliding
from sned.devices.figures import Figures
from sned.devices.kernels import FloatArray
from sned.devices.layout import Family
from sned.devices.recipes import chained
from sned.devices.timer import Probe

OPS = 24
WEIGHTS = 300_000
"""Of a network at most: what more weights cost is measured apart."""

MACS = 1.2e8
ELEMENTS = (150_000, 1_000_000)
"""Of an activation at most, of every other network: the nearest caches hold the former."""

ROWS = ((49, 96), (64, 128), (128, 96), (197, 64), (784, 64), (1024, 32), (197, 192), (784, 96), (3136, 64))
"""Their number and width in the networks that have no images."""

Way = Literal["blocked", "plain", "grouped", "rows", "moved"]
"""How the data of an op are kept and gone through: images in blocks, images as they are (at once, or a group of
channels after the other), or rows; or whether they are only moved, which is alike alone and in company."""

_WAYS: Mapping[str, Way] = {
    "plain_conv": "plain", "plain_pool": "plain", "deconv": "plain", "plain_depthwise": "grouped",
    "plain_grouped": "grouped", "concat": "moved", "copy": "moved", "reshape": "moved",
}  # fmt: skip
_BLOCKED = ("direct", "blocked", "reorder")


def way_of(recipe: str) -> Way:
    """How the data of an op are kept and gone through."""
    return "blocked" if recipe.startswith(_BLOCKED) else _WAYS.get(recipe, "rows")


@dataclass(frozen=True)
class Company:
    """Microseconds that an op of one way takes longer in a network than alone: an op, and each byte that it moves, near
    or beyond the nearest caches."""

    begin_us: float = 0.0
    byte_us: float = 0.0
    beyond_us: float = 0.0


def lost_us(
    family: Family, widths: Sequence[FloatArray], figures: Figures, held: Mapping[Way, Company]
) -> FloatArray:
    """Microseconds that ops of a family lose in company at `P` widths, given as one `[P]` array an axis."""
    company = held.get(way_of(family.recipe), Company())
    near, beyond = _moved(family, widths, figures)
    return np.asarray(company.begin_us + company.byte_us * near + company.beyond_us * beyond)


def _moved(family: Family, widths: Sequence[FloatArray], figures: Figures) -> tuple[FloatArray, FloatArray]:
    """Bytes that an op moves, those that it finds alone in the nearest caches and those beyond.

    All are near up to the size of these caches, none from twice that on.
    """
    asked = demand(family, widths, figures.tile)
    moved = (asked.moved + asked.weights) * BYTES
    near = moved * np.clip(2 - moved / figures.near_bytes, 0.0, 1.0)
    return near, moved - near


def company_of(
    networks: Mapping[str, Sequence[Shape]],
    took_us: Mapping[str, float],
    alone_us: Callable[[Shape], float],
    cold: Cold,
    figures: Figures,
) -> dict[Way, Company]:
    """Learn from the networks that were timed.

    Args:
        networks: the ops of each.
        took_us: how long each took, without what a session costs besides its ops.
        alone_us: what an op takes alone, timed in the same rounds.
        cold: what far-away weights cost, which is counted apart.
        figures: of the device.
    """
    rows: dict[Way, list[tuple[float, ...]]] = {}
    for name in networks.keys() & took_us.keys():
        ops = networks[name]
        near, beyond = np.sum([_moved(op.family, op.columns, figures) for op in ops], axis=0)[:, 0]
        weights = sum(float(demand(op.family, op.columns, figures.tile).weights[0]) for op in ops) * BYTES
        way = way_of(ops[0].family.recipe)
        far = cold.reach(np.array([weights]), np.array([took_us[name]]))
        fetched = sum(
            float(fetched_us(cold, op.family, op.columns, far)[0])
            for op in ops
            if op.family.recipe in HAVE_WEIGHTS
        )
        lost = took_us[name] - sum(map(alone_us, ops)) - fetched
        rows.setdefault(way, []).append((len(ops), near, beyond, lost))
    return {way: _fitted(np.array(held)) for way, held in rows.items()}


def _fitted(rows: FloatArray) -> Company:
    """Relative to what was lost, so that short networks count as much as long ones."""
    scale = np.array([1.0, 1e-5, 1e-5])
    scaled = rows[:, :3] * scale
    weight = 1 / np.maximum(scaled.sum(axis=1), 1e-9)
    found, _ = nnls(scaled * weight[:, None], rows[:, 3] * weight)
    return Company(*map(float, found * scale))


def probes(networks: Mapping[str, Sequence[Shape]], block: int) -> list[Probe]:
    """The networks as something to time, each beside its ops."""
    made = [
        Probe(key, model)
        for name, ops in networks.items()
        for key, model in (
            (name, partial(_model, ops, block)),
            *((op.key(block), partial(op.model, block)) for op in ops),
        )
    ]
    return list({probe.key: probe for probe in made}.values())


def _model(ops: Sequence[Shape], block: int) -> ModelProto:
    return chained([op.model(block) for op in ops])


def small_networks(block: int, seed: int = 0) -> dict[str, tuple[Shape, ...]]:
    """A few networks of each way, drawn at random."""
    rng = np.random.default_rng(seed)
    made: dict[str, tuple[Shape, ...]] = {}
    for place, side in enumerate((56, 112, 28, 56, 14, 28, 7, 14)):
        elements = ELEMENTS[place % 2]
        if block > 1:
            made[f"network blocked {place}"] = tuple(_convolutions(rng, side, elements, "blocked", block))
        made[f"network plain {place}"] = tuple(_convolutions(rng, side, elements, "plain", block))
        made[f"network grouped {place}"] = tuple(_depthwise(rng, side, elements))
    for place, (m, width) in enumerate(ROWS):
        made[f"network rows {place}"] = tuple(_rows(m, width))
    return made


def _convolutions(
    rng: np.random.Generator, side: int, elements: int, way: str, block: int
) -> Iterator[Shape]:
    """1 × 1 and 3 × 3 convolutions, depthwise ones between them in blocks; channels in whole blocks, or odd."""
    multiple = block if way == "blocked" else 1
    most = min(256, elements // side**2)
    weights = macs = 0.0
    given = _channels(rng, most, multiple)
    for place in range(OPS):
        deep, kernel = way == "blocked" and place % 3 == 1, 3 if place % 3 else 1
        made = given if deep else _channels(rng, most if kernel == 1 else most // 2, multiple)
        recipe, widths = ("blocked_depthwise", (1, given)) if deep else (f"{way}_conv", (1, given, made))
        op = shape_of(recipe, widths, activation="", **sliding(kernel, 1, side))
        asked = demand(op.family, op.columns, block)
        weights, macs = weights + float(asked.weights[0]), macs + float(asked.macs[0])
        if place and (weights > WEIGHTS or macs > MACS):
            return
        yield op
        given = made


def _depthwise(rng: np.random.Generator, side: int, elements: int) -> list[Shape]:
    """Depthwise convolutions of odd channels, which are gone through one after the other."""
    channels = _channels(rng, min(256, elements // side**2), 1)
    window = sliding(3, 1, side)
    return [shape_of("plain_depthwise", (1, channels), activation="", multiplier=1, **window)] * (OPS // 2)


def _channels(rng: np.random.Generator, most: int, multiple: int) -> int:
    drawn = float(np.exp(rng.uniform(np.log(24), np.log(max(25, most)))))
    return max(1, round(drawn / multiple)) * multiple if multiple > 1 else round(drawn) // 2 * 2 + 1


def _rows(m: int, width: int) -> Iterator[Shape]:
    """What a transformer does between its attentions."""
    for _ in range(min(4, WEIGHTS // (4 * width**2))):
        yield shape_of("gemm", (m, width, 2 * width))
        yield shape_of("elementwise", (m * 2 * width,), op="Gelu", inputs=1)
        yield shape_of("gemm", (m, 2 * width, width))
        yield shape_of("rows", (m, width), op="LayerNormalization")
