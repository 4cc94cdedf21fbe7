"""Keras models without some of their layers, against the whole one whose branches add zeros, or a model made by hand."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import sned
from sned import Plan
from sned.errors import PlanError, SurgeryError
from tests.surgery.keras.models import images, made, sequence, tokens
from tests.surgery.keras.test_apply import answers, close


def lively(model: Any) -> Any:
    """The model with weights that are not zero anywhere."""
    rng = np.random.default_rng(3)
    for variable in model.weights:
        value = rng.uniform(0.2, 0.6, tuple(variable.shape))
        positive = "variance" in variable.name or "gamma" in variable.name
        variable.assign(value if positive else value * rng.choice([-1.0, 1.0], value.shape))
    return model


def blocks() -> Any:
    """Three residual blocks whose layers Keras names; the first addition and normalisation are in the first."""
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(x)
    for width in (12, 10, 6):
        y = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(y))
        x = layers.ReLU()(layers.Add()([x, y]))
    return lively(keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x))))


def silenced(model: Any, *names: str) -> Any:
    """The model whose named layers make zeros, in place."""
    for name in names:
        for variable in model.get_layer(name).trainable_variables:
            variable.assign(np.zeros(tuple(variable.shape)))
    return model


def of_kind(model: Any, kind: type) -> list[str]:
    return [layer.name for layer in model.layers if isinstance(layer, kind)]


def test_a_branch_left_out_adds_nothing() -> None:
    model, x = blocks(), images()
    before, weights = answers(model, x), model.get_weights()
    graph = sned.trace(model, x)
    assert [layer.name for layer in graph.layers if layer.adds] == ["add", "add_1", "add_2"]
    small = sned.apply(model, sned.without(graph, ["add", "add_2"]).plan({}))

    first, second, third = of_kind(model, layers.BatchNormalization)
    gone = {layer.name for layer in model.layers} - {layer.name for layer in small.layers}
    assert {first, third, *np.delete(of_kind(model, layers.Add), 1)} <= gone
    assert second not in gone
    assert len(gone) == 2 * 4
    assert model.count_params() - small.count_params() == sum(
        graph.layers[i].parameters for i, layer in enumerate(graph.layers) if layer.name in ("add", "add_2")
    )
    close(answers(model, x), before)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), weights, strict=True))
    close(answers(small, x), answers(silenced(model, first, third), x))


def test_what_is_left_is_called_as_in_the_whole_model() -> None:
    """Names count from the first layer of a kind, which is gone here."""
    model, x = blocks(), images()
    graph = sned.trace(model, x)
    shorter = sned.without(graph, ["add"])
    assert {group.name for group in shorter.groups} == {group.name for group in graph.groups} - {"conv2d"}
    assert [layer.name for layer in shorter.layers if layer.adds] == ["add_1", "add_2"]
    both = sned.without(shorter, ["add_1"])
    assert both.bypassed == ("add", "add_1")
    one, two, _ = of_kind(model, layers.BatchNormalization)
    small = sned.apply(model, both.plan({}))
    close(answers(small, x), answers(silenced(model, one, two), x))


def test_units_go_from_what_the_layers_leave(tmp_path: Path) -> None:
    """The plan is applied to another model of the same code, whose layers have other numbers."""
    x = images()
    shorter = sned.without(sned.trace(blocks(), x), ["add"])
    plan = Plan.from_json(shorter.plan({"conv2d_2": [0, 3], "conv2d_4": [5]}).to_json())
    assert "1 layers are left out" in str(plan)
    other = blocks()
    other.compile(keras.optimizers.SGD(0.125), "sparse_categorical_crossentropy", metrics=["accuracy"])
    other.get_layer("stem").trainable = False
    small = sned.apply(other, plan)

    convolutions = of_kind(other, layers.Conv2D)
    assert small.get_layer(convolutions[3]).filters == 8
    assert small.get_layer(convolutions[5]).filters == 5
    assert not small.get_layer("stem").trainable
    assert float(small.optimizer.learning_rate) == 0.125
    small.fit(x, np.array([0, 1]), verbose=0)
    sned.save(small, tmp_path / "small.keras")
    close(answers(keras.saving.load_model(tmp_path / "small.keras"), x), answers(small, x))
    close(answers(sned.load(None, tmp_path / "small.keras"), x), answers(small, x))


def test_branches_beside_each_other_go_together() -> None:
    """Of three summands all must follow from the one that is left."""
    x = inputs = keras.Input((5, 6))
    x = layers.Dense(8)(x)
    for name in ("one", "two"):
        wide = layers.Dense(12, activation="relu")(x)
        x = layers.Add(name=name)(
            [layers.Dense(8, name=f"{name}_a")(wide), x, layers.Dense(8, name=f"{name}_b")(x)]
        )
    apart = [layers.Dense(8)(x), layers.Dense(8)(x), layers.Dense(8)(x)]
    model = lively(keras.Model(inputs, layers.Dense(3)(layers.Add(name="apart")(apart))))
    graph = sned.trace(model, sequence())
    assert [layer.name for layer in graph.layers if layer.adds] == ["one", "two"]
    small = sned.apply(model, sned.without(graph, ["two"]).plan({}))
    assert model.count_params() - small.count_params() == 9 * 12 + 13 * 8 + 9 * 8
    close(answers(small, sequence()), answers(silenced(model, "two_a", "two_b"), sequence()))


def test_additions_by_operators_can_go() -> None:
    model, x = made("transformer")
    graph = sned.trace(model, x)
    assert [layer.name for layer in graph.layers if layer.adds] == ["add", "add_1", "add_2", "add_3"]
    small = sned.apply(model, sned.without(graph, ["add", "add_3"]).plan({}))
    attention, last = of_kind(model, layers.MultiHeadAttention)[0], of_kind(model, layers.Dense)[3]
    assert attention not in {layer.name for layer in small.layers}
    for variable in model.get_layer(attention)._output_dense.weights:
        variable.assign(np.zeros(tuple(variable.shape)))
    close(answers(small, x), answers(silenced(model, last), x))


def block(width: int, name: str) -> Any:
    inputs = keras.Input((8, 8, 8))
    y = layers.Conv2D(width, 3, padding="same", activation="relu", name="up")(inputs)
    y = layers.Conv2D(8, 3, padding="same", name="down")(y)
    return keras.Model(inputs, layers.Add(name="sum")([inputs, y]), name=name)


def stacked(kind: str) -> Any:
    """Models in a model: `one` adds its branch inside itself; `branch` is added outside."""
    stem, one, two = layers.Conv2D(8, 1, name="stem"), block(12, "one"), block(10, "two")
    head = layers.Dense(3, name="head")
    if kind == "sequential":
        model = keras.Sequential([keras.Input((8, 8, 3)), stem, one, two, layers.Flatten(), head])
    else:
        inputs = keras.Input((8, 8, 3))
        model = keras.Model(inputs, head(layers.Flatten()(two(one(stem(inputs))))))
    return lively(model)


@pytest.mark.parametrize("kind", ["sequential", "functional"])
@pytest.mark.parametrize(("name", "silent"), [("one", "one"), ("one.sum", "one"), ("two.sum", "two")])
def test_models_in_models_and_branches_in_them_can_go(kind: str, name: str, silent: str) -> None:
    model, x = stacked(kind), images()
    graph = sned.trace(model, x)
    assert {"one", "two", "one.sum", "two.sum"} == {layer.name for layer in graph.layers}
    small = sned.apply(model, sned.without(graph, [name]).plan({}))
    assert type(small) is type(model)
    names = {layer.name for layer in small.layers}
    assert names == {layer.name for layer in model.layers} - ({"one"} if name == "one" else set())
    if name != "one":
        assert [layer.name for layer in small.get_layer(silent).layers] == [
            model.get_layer(silent).layers[0].name
        ]
    silenced(model.get_layer(silent), "down")
    close(answers(small, x), answers(model, x))


def test_what_lies_inside_another_goes_with_it() -> None:
    model, x = stacked("functional"), images()
    shorter = sned.without(sned.trace(model, x), ["one.sum", "one"])
    assert shorter.bypassed == ("one",)
    assert {layer.name for layer in shorter.layers} == {"two", "two.sum"}
    assert sned.without(shorter, []) is shorter


def test_a_branch_that_is_a_model_goes_whole() -> None:
    inputs = keras.Input((6,))
    branch = keras.Sequential([layers.Dense(9, "relu"), layers.Dense(6, name="last")], name="branch")
    x = layers.Add()([layers.Dropout(0.1)(branch(inputs)), inputs])
    model, given = lively(keras.Model(inputs, layers.Dense(3)(x))), sequence(1, 6)[:, 0]
    graph = sned.trace(model, given)
    assert [layer.name for layer in graph.layers] == ["add"], "to pass the branch's input on would add it"
    small = sned.apply(model, sned.without(graph, ["add"]).plan({}))
    assert len(small.layers) == 2
    close(answers(small, given), answers(silenced(branch, "last") and model, given))


def test_of_several_inputs_and_outputs_each_stays() -> None:
    """The branch reads an input of its own, and the sum is what the model returns."""
    a, b = keras.Input((5, 6), name="a"), keras.Input((5, 6), name="b")
    x = layers.Dense(8, name="stem")(a)
    y = layers.MultiHeadAttention(2, 4, name="attend")(x, layers.Dense(4)(b))
    model = lively(keras.Model({"a": a, "b": b}, {"sum": x + y, "raw": layers.Dense(2)(x)}))
    given = {"a": sequence(), "b": sequence() * 0.5}
    small = sned.apply(model, sned.without(sned.trace(model, given), ["add"]).plan({}))
    expected = {
        "sum": model.get_layer("stem")(given["a"]),
        "raw": model.layers[-1](model.get_layer("stem")(given["a"])),
    }
    close(
        answers(small, given),
        [np.asarray(keras.ops.convert_to_numpy(t)) for t in keras.tree.flatten(expected)],
    )


@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_that_is_called_elsewhere_too_stays(nested: bool, tmp_path: Path) -> None:
    """Its call in the branch is the first, which goes, and the second stays."""
    inputs = keras.Input((6,))
    taken = keras.Input((6,))
    dense = layers.Dense(6, "relu", name="inner" if nested else "shared")
    shared = keras.Model(taken, dense(taken), name="shared") if nested else dense
    branch, head = layers.Dense(6, name="branch"), layers.Dense(3, name="head")
    x = layers.Add(name="sum")([inputs, branch(shared(inputs))])
    model, given = lively(keras.Model(inputs, head(shared(x)))), sequence(1, 6)[:, 0]
    graph = sned.trace(model, given)
    assert {layer.name: layer.parameters for layer in graph.layers} == {"sum": 6 * 6 + 6}
    small = sned.apply(model, sned.without(graph, ["sum"]).plan({}))
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    assert {layer.name for layer in again.layers} >= {"shared", "head"}
    assert len(again.layers) == 3
    close(answers(again, given), answers(silenced(model, "branch"), given))


@keras.saving.register_keras_serializable("tests")
class Add(layers.Layer):
    """Called like an addition, and none."""

    def call(self, x: Any, y: Any) -> Any:
        return x * y


def not_residual() -> Any:
    """Sums of two projections, of what is no sum, of a layer that runs twice, and of one without weights."""
    inputs = keras.Input((6,))
    x = layers.Add(name="projected")([layers.Dense(6)(inputs), layers.Dense(6)(inputs)])
    x = Add(name="product")(x, layers.Dense(6, "relu")(layers.Dense(7)(x)))
    twice = layers.Dense(6, name="twice")
    x = layers.Activation("relu")(twice(layers.Activation("relu")(twice(x))))
    x = layers.Add(name="weightless")([x, layers.Activation("tanh")(x)])
    return lively(keras.Model(inputs, layers.Dense(3, name="head")(x)))


def test_what_cannot_be_left_out_is_refused() -> None:
    graph = sned.trace(not_residual(), sequence(1, 6)[:, 0])
    assert not any(layer.adds for layer in graph.layers)
    for name in ("projected", "product", "twice", "weightless", "head"):
        with pytest.raises(PlanError, match=rf"returns the shape that it takes; not so '{name}'"):
            sned.without(graph, [name])


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [("subclassed", "conv2d_1", "Classifier"), ("custom_layer", "block_1.dense", "Block")],
)
def test_what_code_calls_is_refused_with_the_reason(name: str, layer: str, kind: str) -> None:
    graph = sned.trace(*made(name))
    with pytest.raises(
        PlanError, match=rf"'{layer}' is called by code, in `{kind}\.call`.*argument that says which"
    ):
        sned.without(graph, [layer])


def test_names_that_are_unknown_are_answered_with_close_ones() -> None:
    graph = sned.trace(blocks(), images())
    with pytest.raises(PlanError, match=r"not so 'add_7'\. Did you mean 'add"):
        sned.without(graph, ["add_7"])
    with pytest.raises(PlanError, match=r"a list of their names"):
        sned.without(graph, "add")
    plan = sned.without(graph, ["add"]).plan({})
    with pytest.raises(PlanError, match=r"not so 'add'\."):
        sned.apply(stacked("functional"), plan)


def test_a_shortcut_that_brings_a_mask_back_is_refused() -> None:
    """An addition drops the mask that one summand lacks, and the summand that is left has it still."""
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(11, 6, mask_zero=True)(inputs)
    x = layers.Add(name="sum")([x, layers.Conv1D(6, 3, padding="same")(x)])
    model, given = lively(keras.Model(inputs, layers.Dense(3)(layers.GRU(6)(x)))), tokens()
    given[0, 4:] = 0
    with pytest.raises(SurgeryError, match=r"leaving out sum gives other outputs"):
        sned.without(sned.trace(model, given), ["sum"])


def test_a_wrong_edit_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    import sned.surgery.keras.depth as depth

    graph = sned.trace(blocks(), images())
    monkeypatch.setattr(depth, "rewired", lambda config, instead: config)
    with pytest.raises(SurgeryError, match=r"leaving out add_1 gives other outputs.*Leave it in"):
        sned.without(graph, ["add_1"])


def test_models_of_mixed_precision() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model, x = blocks(), images()
    finally:
        keras.config.set_dtype_policy("float32")
    small = sned.apply(model, sned.without(sned.trace(model, x), ["add"]).plan({}))
    assert [layer.dtype_policy.name for layer in small.layers] == ["mixed_bfloat16"] * len(small.layers)
    first = of_kind(model, layers.BatchNormalization)[0]
    got, expected = (
        np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(one(x, training=False), "float32")))
        for one in (small, silenced(model, first))
    )
    assert np.abs(got - expected).max() <= 0.05 * np.abs(expected).max()


def test_layers_are_left_out_on_the_short_road(tmp_path: Path) -> None:
    """The report is of the whole model, and the budget is a share of it; from a shell too."""
    from sned.cli.app import main

    model, x = blocks(), np.random.default_rng(0).standard_normal((48, 8, 8, 3)).astype("float32")
    model.save(tmp_path / "model.keras")
    result = sned.prune(
        model, x[:2], without=["add"], budget=sned.Budget(macs="50%", device="raspberry-pi-5"), calibration=x
    )
    macs = 64 * 9 * (3 * 8 + 2 * 8 * (12 + 10 + 6)) + 8 * 4
    assert result.report.before.macs == macs
    assert 0.4 <= result.report.after.macs / macs <= 0.5
    assert any(note.startswith("Left out: add.") for note in result.report.notes)
    gone = [layer for layer in result.report.layers if layer.macs_after == 0]
    assert sum(layer.macs_before for layer in gone) == 64 * 9 * 2 * 8 * 12
    assert result.plan.bypassed == ("add",)
    assert result.model.count_params() < model.count_params() / 2 + 100

    alone = sned.prune(model, x[:2], without=["add"], calibration=x[:40]).model
    cut = keras.models.clone_model(model)
    cut.set_weights(model.get_weights())
    silenced(cut, of_kind(model, layers.BatchNormalization)[0])
    wanted, *others = (np.asarray(answers(one, x[40:])) for one in (model, cut, alone))
    lost, left = (np.square(other - wanted).sum() for other in others)
    assert left < lost / 2, "what remains answers for what was left out"

    rest = [
        "-e",
        "2,8,8,3",
        "--without",
        "add_1",
        "--device",
        "raspberry-pi-5",
        "--out",
        str(tmp_path / "out"),
    ]
    with contextlib.suppress(SystemExit):
        main(["prune", str(tmp_path / "model.keras"), *rest])
    second = of_kind(model, layers.BatchNormalization)[1]
    small = keras.saving.load_model(tmp_path / "out" / "model.keras")
    assert second not in {layer.name for layer in small.layers}
    close(answers(small, x), answers(silenced(model, second), x))
