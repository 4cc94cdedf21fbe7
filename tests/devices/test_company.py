"""What ops lose in company: against losses that we make up, and networks that the runtime takes."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest

from sned.devices.cold import NEAR
from sned.devices.company import Company, company_of, lost_us, probes, small_networks, way_of
from sned.devices.demand import demand
from sned.devices.design import Shape, shape_of
from sned.devices.figures import figures
from sned.devices.layout import Family
from sned.devices.probe import block_size, open_op
from sned.devices.profile import find_device
from sned.devices.recipes import RECIPES

TILE = 16
NEAREST = 1e6
FIGURES = replace(figures(find_device("laptop-i5-1135g7"), block=TILE), sizes=np.array([32e3, NEAREST]))
"""Of a machine on which small ops find everything near."""


def moved(op: Shape) -> tuple[float, float]:
    """Bytes of an op near, all up to the size of the nearest caches and none from twice that on, and beyond."""
    asked = demand(op.family, op.columns, TILE)
    bytes_ = 4 * float((asked.read + asked.written + asked.weights)[0])
    near = bytes_ * min(max((2 * NEAREST - bytes_) / NEAREST, 0.0), 1.0)
    return near, bytes_ - near


def alone_us(op: Shape) -> float:
    return 10.0 + len(op.widths)


def test_losses_are_found_again_for_each_way() -> None:
    networks = small_networks(16)
    made_up = {
        "blocked": (0.5, 1e-5, 2e-5), "plain": (4.0, 0.0, 5e-6), "grouped": (9.0, 2e-6, 0.0), "rows": (0.0, 3e-6, 9e-6),
    }  # fmt: skip
    took = {
        name: sum(alone_us(op) + np.dot(made_up[way_of(op.family.recipe)], (1.0, *moved(op))) for op in ops)
        for name, ops in networks.items()
    }
    found = company_of(networks, took, alone_us, NEAR, FIGURES)
    for way, lost_each in made_up.items():
        assert astuple(found[way]) == pytest.approx(lost_each, abs=1e-9)
    gemm = shape_of("gemm", (4, 8, 16))
    lost = lost_us(gemm.family, gemm.columns, FIGURES, found)
    assert lost == pytest.approx(np.array([3e-6 * 4 * (4 * 8 + 4 * 16 + 8 * 16)]))


def test_networks_faster_than_their_ops_lose_nothing() -> None:
    networks = small_networks(16)
    took = {name: 0.5 * sum(map(alone_us, ops)) for name, ops in networks.items()}
    found = company_of(networks, took, alone_us, NEAR, FIGURES)
    assert {astuple(company) for company in found.values()} == {(0.0, 0.0, 0.0)}


def test_what_far_away_weights_cost_is_not_counted_again() -> None:
    networks = {name: ops for name, ops in small_networks(16).items() if "rows" in name}
    cold = replace(NEAR, footprints=np.array([1e3, 1e9]), stream_us={"window": np.array([0.0, 1e-3])})
    took = {}
    for name, ops in networks.items():
        asked = [demand(op.family, op.columns, TILE) for op in ops]
        weights = np.array([4 * float(a.weights[0]) for a in asked])
        far = cold.lost_us(cold.reach(weights.sum(), np.zeros(1)), weights, "rows").tolist()
        took[name] = sum(alone_us(op) + 0.25 + lost for op, lost in zip(ops, far, strict=True))
        assert sum(far) > 1
    (found,) = company_of(networks, took, alone_us, cold, FIGURES).values()
    assert astuple(found) == pytest.approx((0.25, 0.0, 0.0), abs=1e-9)


def test_nothing_is_lost_where_nothing_was_measured() -> None:
    np.testing.assert_array_equal(lost_us(Family("gemm"), (np.ones(2),) * 3, FIGURES, {}), np.zeros(2))


def test_what_is_too_large_to_be_near_lies_beyond() -> None:
    small = replace(FIGURES, sizes=np.array([1e3, 4e6]))
    (_, company), family = (
        ("rows", Company(0.5, 1e-5, 3e-6)),
        Family("elementwise", (("inputs", 1), ("op", "Gelu"))),
    )
    elements = np.array([1e5, 5e5, 7.5e5, 1e6, 1e9])  # eight bytes each: read, and written
    lost = lost_us(family, (elements,), small, {"rows": company})
    near = np.array([1, 1, 0.5, 0, 0])
    np.testing.assert_allclose(lost, 0.5 + 8 * elements * (1e-5 * near + 3e-6 * (1 - near)))


def test_each_network_is_timed_beside_its_ops() -> None:
    networks = small_networks(16)
    keys = [probe.key for probe in probes(networks, 16)]
    assert len(set(keys)) == len(keys)
    for name, ops in networks.items():
        place = keys.index(name)
        own = {op.key(16) for op in ops}
        assert own <= set(keys)
        assert own - set(keys[:place]) == own & set(keys[place + 1 : place + 1 + len(own)])


def test_every_recipe_has_a_way() -> None:
    ways = {recipe: way_of(recipe) for recipe in RECIPES}
    assert {name for name, way in ways.items() if way == "blocked"} == {
        name for name in RECIPES if name.startswith(("blocked", "direct", "reorder"))
    }
    assert ways["plain_depthwise"] == ways["plain_grouped"] == "grouped"
    assert ways["plain_pool"] == ways["deconv"] == "plain"
    assert ways["gemm"] == ways["elementwise"] == "rows"
    assert ways["reshape"] == ways["copy"] == ways["concat"] == "moved"


def test_what_only_moves_data_is_in_no_network_and_loses_nothing() -> None:
    held = {way_of(op.family.recipe) for ops in small_networks(16).values() for op in ops}
    assert held == {"blocked", "plain", "grouped", "rows"}
    slice_ = Family("copy", (("op", "Slice"),))
    lost = lost_us(slice_, (np.array([1e5]),), FIGURES, dict.fromkeys(held, Company(1.0, 1.0, 1.0)))
    np.testing.assert_array_equal(lost, [0.0])


@pytest.mark.parametrize(
    "name", ["network blocked 3", "network plain 3", "network grouped 3", "network rows 0"]
)
def test_the_runtime_runs_every_op_of_a_network_and_merges_none(name: str) -> None:
    block = block_size()
    networks = small_networks(block)
    if name not in networks:
        pytest.skip("no such kernels without blocks")
    (probe,) = [one for one in probes(networks, block) if one.key == name]
    model = probe.model()
    assert [node.op_type for node in model.graph.node] == [
        op.model(block).graph.node[0].op_type for op in networks[name]
    ]
    session = open_op(model, 1)
    feeds = {value.name: np.ones(value.shape, np.float32) for value in session.get_inputs()}
    (made,) = session.run(None, feeds)
    assert np.isfinite(made).all()
    assert np.abs(made).min() > 1e-30
