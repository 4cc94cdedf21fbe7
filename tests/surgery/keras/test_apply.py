"""A pruned Keras model against the dense one with the removed slices set to zero: neither replay nor graph is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import sned
from sned.graph import Graph, Plan
from sned.surgery.keras.naming import variables_of
from tests.surgery.keras.models import BUILDERS, Classifier, images, made


def answers(model: Any, inputs: Any) -> list[np.ndarray]:
    given = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    return [
        np.asarray(keras.ops.convert_to_numpy(t)) for t in keras.tree.flatten(model(given, training=False))
    ]


def zeroed(model: Any, graph: Graph, plan: Plan) -> Any:
    """The dense model with what the plan removes set to zero, in place."""
    variables = {held.path: held.variable for held in variables_of(model)}
    for group in graph.groups:
        for part in group.slices if group.name in plan.removed else ():
            value = np.array(keras.ops.convert_to_numpy(variables[part.parameter].value))
            index: list[Any] = [slice(None)] * value.ndim
            index[part.axis] = part.positions[list(plan.removed[group.name])].ravel()
            value[tuple(index)] = 0
            variables[part.parameter].assign(value)
    return model


def close(mine: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for a, b in zip(mine, theirs, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= 1e-4 * max(np.abs(b).max(), 1e-3)


@pytest.mark.parametrize("name", BUILDERS)
def test_half_of_every_group_can_go(name: str, tmp_path: Path) -> None:
    model, inputs = made(name)
    before = answers(model, inputs)
    graph = sned.trace(model, inputs)
    assert graph.groups
    plan = sned.plan(graph, sparsity=0.5)

    small = sned.apply(model, plan)

    assert type(small) is type(model)
    assert small.count_params() < model.count_params()
    close(answers(model, inputs), before)
    exact = [group.name for group in graph.groups if group.exact]
    only_exact = graph.plan({name: plan.removed[name] for name in exact if name in plan.removed})
    if exact:
        few = answers(sned.apply(model, only_exact), inputs)
        close(few, answers(zeroed(made(name)[0], graph, only_exact), inputs))
    small.save(tmp_path / "small.keras")
    close(answers(keras.saving.load_model(tmp_path / "small.keras"), inputs), answers(small, inputs))


def test_both_directions_lose_the_same_units() -> None:
    """Keras reckons the output of `Bidirectional` as twice that of the forward layer."""
    model, inputs = made("masked")
    graph = sned.trace(model, inputs)
    for group in graph.groups:
        plan = graph.plan({group.name: [0]})
        removed = {p: axes for p, axes in plan.kept.items() if "recurrent_kernel" in p and "gru" in p}
        assert len(removed) in (0, 2)
        few = answers(sned.apply(model, plan), inputs)
        if group.exact:
            close(few, answers(zeroed(made("masked")[0], graph, plan), inputs))


def test_dimensions_inside_heads_go_from_queries_and_keys() -> None:
    """What attention divides by then changes, which the kernels make up for."""
    model, inputs = made("attention_kinds")
    graph = sned.trace(model, inputs)
    inside = ("multi_head_attention.query.kernel", 2), ("grouped_query_attention.query.kernel", 2)
    found = [g for g in graph.groups if any((s.parameter, s.axis) in inside for s in g.slices)]
    plan = graph.plan({group.name: [1] for group in found})
    assert {"multi_head_attention.query.bias", "grouped_query_attention.key.kernel"} < plan.kept.keys()
    few = answers(sned.apply(model, plan), inputs)
    close(few, answers(zeroed(made("attention_kinds")[0], graph, plan), inputs))


def test_every_group_can_go_alone() -> None:
    """Attention is as wide as what it is given, which two groups of one size would hide."""
    model, inputs = made("attention_kinds")
    graph = sned.trace(model, inputs)
    for group in graph.groups:
        plan = graph.plan({group.name: [1]})
        few = answers(sned.apply(model, plan), inputs)
        if group.exact:
            close(few, answers(zeroed(made("attention_kinds")[0], graph, plan), inputs))


def test_what_a_number_is_multiplied_or_divided_to_follows_it() -> None:
    """All widths that a class works out from one argument lose in one proportion, and the argument says so."""
    model, inputs = made("multiples")
    small = sned.apply(model, sned.plan(sned.trace(model, inputs), sparsity=0.5))
    assert small.get_config() == {**model.get_config(), "width": 4}
    assert small.attention.key_dim == 2
    assert [block.layers[0].units for block in small.blocks] == [8, 8]


def test_models_that_only_count_as_built_are_called_first() -> None:
    model = Classifier()
    with pytest.warns(UserWarning, match=r"does not have a `build\(\)`"):
        model.build((None, 8, 8, 3))
    assert not model.weights
    graph = sned.trace(model, images())
    assert sned.apply(model, sned.plan(graph, sparsity=0.5)).width == 4
