"""Names that layers may have and modules of PyTorch may not."""

from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import layers

import sned
from sned.graph.trace import state_of
from sned.surgery.keras.naming import call_alike, operations_of, variables_of
from sned.surgery.keras.network import Network
from tests.surgery.keras.models import images, sequence
from tests.surgery.keras.test_apply import answers, close, zeroed

TORCH = keras.backend.backend() == "torch"


def test_layers_may_be_called_like_attributes_of_modules() -> None:
    plain = keras.Sequential([keras.Input((6,)), layers.Dense(3, name="plain")])
    names = sorted(
        name for name in {*dir(Network.of(plain)), "_sned_paths", "_variables"} if name not in dir(object)
    )
    model = keras.Sequential([keras.Input((6,)), *[layers.Dense(2, name=name) for name in names]])
    state = state_of(Network.of(model))
    assert list(state) == [held.path for held in variables_of(model)]
    assert len(state) == 2 * len(names)


def test_a_model_of_such_names_is_cut() -> None:
    inputs = keras.Input((5, 6))
    both = [layers.LSTM(8, name="forward")(inputs), layers.LSTM(8, go_backwards=True, name="graph")(inputs)]
    model = keras.Model(inputs, layers.Dense(3, name="type")(layers.Concatenate(name="keras")(both)))
    graph = sned.trace(model, sequence())
    small = sned.apply(model, sned.plan(graph, sparsity=0.5))
    assert small.get_layer("graph").units == 4
    assert {group.name for group in graph.groups} == {"forward_.lstm_cell", "graph_.lstm_cell"}
    close(answers(sned.apply(model, graph.plan({})), sequence()), answers(model, sequence()))


@pytest.mark.skipif(TORCH, reason="under PyTorch there can be no such model")
def test_models_inside_may_have_dots_in_their_names() -> None:
    """As MobileNets have, which others are made of."""

    def made() -> Any:
        keras.utils.set_random_seed(0)
        inside = keras.Input((8, 8, 3))
        x = layers.Conv2D(8, 3, name="block.up")(inside)
        base = keras.Model(inside, layers.Conv2D(6, 3, bias_initializer="ones")(x), name="net_0.35")
        inputs = keras.Input((8, 8, 3))
        return keras.Model(inputs, layers.Dense(3, name="my.head")(layers.Flatten()(base(inputs))))

    model = made()
    graph = sned.trace(model, images())
    assert [group.name for group in graph.groups] == ["net_0_35.block_up", "net_0_35.conv2d"]
    plan = sned.plan(graph, sparsity=0.5)
    small = sned.apply(model, plan)
    for one in (small, model):
        assert [layer.name for layer in one.layers[1:]] == ["net_0.35", *(o.name for o in model.layers[2:])]
        assert one.layers[1].layers[1].name == "block.up"
    close(answers(small, images()), answers(zeroed(made(), graph, plan), images()))


def test_a_model_may_have_a_dot_in_its_own_name() -> None:
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(8)(inputs)), name="mobilenet_1.00")
    small = sned.apply(model, sned.plan(sned.trace(model, sequence(1, 6)[:, 0]), sparsity=0.5))
    assert small.name == model.name == "mobilenet_1.00"
    assert small.layers[1].units == 4


def test_layers_are_called_as_in_another_model_in_whichever_order_it_has_them() -> None:
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(4, name="mine_a"),
            layers.ReLU(name="act"),
            layers.Dense(3, name="mine_b"),
        ]
    )
    there = {"": "Sequential", "act": "ReLU", "input_layer": "InputLayer", "a": "Dense", "b": "Dense"}
    call_alike(model, there)
    found = operations_of(model)
    assert [*found] == [*there]
    assert (found["a"], found["b"], found["act"]) == (model.layers[0], model.layers[2], model.layers[1])
