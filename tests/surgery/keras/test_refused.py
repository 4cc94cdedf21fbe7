"""What bad input gets, and what Keras cannot express."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import sned
from sned.errors import CalibrationError, CheckpointError, ExampleError, ModelError, UserError
from sned.surgery.keras import is_keras
from sned.surgery.keras.arrays import batches
from sned.surgery.keras.naming import variables_of
from tests.surgery.keras.models import images, made, sequence

TORCH = keras.backend.backend() == "torch"


class Fixed(keras.Model):
    """A model with its sizes written into the code."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.one, self.two = layers.Dense(8, activation="relu"), layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.two(self.one(x))


class Silent(layers.Layer):
    """A layer that does not tell its configuration."""

    def __init__(self, factor: Any) -> None:
        super().__init__()
        self.factor = factor

    def call(self, x: Any) -> Any:
        return x * self.factor


class Named(layers.Layer):
    """A layer that Keras does not know by its name."""

    def call(self, x: Any) -> Any:
        return x * 2


class Sampling(layers.Layer):
    """A layer that draws random numbers, in inference too."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x: Any) -> Any:
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def values(model: Any) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(held.variable.value)) for held in variables_of(model)]


def test_what_draws_random_numbers_in_inference_is_named() -> None:
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3)(Sampling(name="noise")(layers.Dense(8)(inputs))))
    with pytest.raises(ModelError, match="'noise' draws random numbers in inference too"):
        sned.trace(model, np.ones((2, 6), "float32"))


def test_sizes_in_the_code_stay_with_the_reason() -> None:
    model = Fixed()
    x = sequence(1, 6)[:, 0]
    model(x)
    graph = sned.trace(model, x)
    assert not graph.groups
    assert any("in no layer's configuration" in frozen.reason for frozen in graph.frozen)


def test_a_shape_in_a_function_stays_with_the_reason() -> None:
    inputs = keras.Input((6,))
    x = layers.Dense(8)(inputs)
    x = layers.Lambda(lambda t: __import__("keras").ops.reshape(t, (-1, 2, 4)), output_shape=(2, 4))(x)
    x = layers.Dense(5)(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    graph = sned.trace(model, sequence(1, 6)[:, 0])
    assert [group.name for group in graph.groups] == ["dense_1"]
    assert any(frozen.name == "dense" for frozen in graph.frozen)
    small = sned.apply(model, sned.plan(graph, sparsity=0.4))
    assert small.get_layer(model.layers[3].name).units == 3


def test_a_layer_without_configuration_is_named() -> None:
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3)(Silent(np.ones(6, "float32"))(layers.Dense(6)(inputs))))
    before = values(model)
    with pytest.raises(ModelError, match=r"Silent|get_config"):
        sned.trace(model, sequence(1, 6)[:, 0])
    for mine, theirs in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_training_is_for_fit(tmp_path: Path) -> None:
    model, x = made("residual")
    for train in (
        lambda: sned.finetune(model, (x, x)),
        lambda: sned.prune(model, x, budget=sned.Budget(macs="50%"), finetune={"data": []}),
    ):
        with pytest.raises(UserError, match=r"`fit`.*`sned\.keras\.Distiller`"):
            train()
    assert sned.burn_in(model) is model


def test_where_nothing_can_go_the_plan_says_why() -> None:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    graph = sned.trace(model, sequence(1, 6)[:, 0])
    with pytest.raises(ModelError, match=r"Nothing in this network can be removed \(.*output of the model"):
        sned.plan(graph, sparsity=0.5)


def test_a_layer_alone_is_refused() -> None:
    with pytest.raises(ModelError, match=r"whole Keras models, got the layer Dense.*Sequential"):
        sned.trace(layers.Dense(3), sequence())
    with pytest.raises(
        ModelError, match=r"`model` must be .* or a Keras 3 model, got an object of type list"
    ):
        sned.trace([made("residual")[0]], sequence())


def test_models_of_keras_2_are_told_what_to_do() -> None:
    kind = type("Functional", (), {"__module__": "tf_keras.src.engine.functional"})
    with pytest.raises(ModelError, match=r"Keras 2 \(tf_keras\).*TF_USE_LEGACY_KERAS"):
        is_keras(kind())


def test_a_function_that_keras_cannot_load_is_told() -> None:
    inputs = keras.Input((6,))
    x = layers.Lambda(lambda t: NOWHERE.twice(t), output_shape=(6,))(inputs)
    model = keras.Model(inputs, layers.Dense(3)(x))
    with pytest.raises(ModelError, match=r"NOWHERE"):
        sned.trace(model, sequence(1, 6)[:, 0])


class NOWHERE:
    """A name that a saved function cannot see."""

    @staticmethod
    def twice(t: Any) -> Any:
        return t * 2


def test_examples_must_be_arrays_that_fit() -> None:
    model, _ = made("residual")
    with pytest.raises(ExampleError, match=r"array of numbers.*got str"):
        sned.trace(model, "images")
    with pytest.raises(ExampleError, match=r"\[any, 8, 8, 3\] for '.*', got \[2, 8, 8, 4\]"):
        sned.trace(model, images(channels=4))
    with pytest.raises(ExampleError, match=r"got \[8, 8, 3\]\. The first axis is the batch"):
        sned.trace(model, images()[0])


def test_an_axis_of_1_may_be_left_out_as_keras_has_it() -> None:
    model = keras.Sequential([keras.Input((6, 1)), layers.Flatten(), layers.Dense(8), layers.Dense(3)])
    assert [group.name for group in sned.trace(model, np.ones((2, 6), "float32")).groups] == ["dense"]


def test_several_inputs_are_told_apart() -> None:
    model, inputs = made("shared")
    a, b = inputs["a"], inputs["b"]
    for given in ({"a": a, "b": b[:, :4]}, [a, b[:, :4]]):
        with pytest.raises(ExampleError, match=r"\[any, 6\] for 'b', got \[2, 4\]"):
            sned.trace(model, given)


class Wide(layers.Layer):
    """A layer that takes but one length."""

    def call(self, x: Any) -> Any:
        return x + keras.ops.ones((5, 8))

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


def test_what_a_layer_says_of_inputs_that_it_does_not_take_is_told_in_a_line() -> None:
    inputs = keras.Input((None, 6))
    model = keras.Model(inputs, layers.Dense(3)(Wide()(layers.Dense(8)(inputs))))
    with pytest.raises(ModelError, match=r"must run on the example inputs") as told:
        sned.trace(model, sequence(4))
    assert not {"\n", "\x1b"} & {*str(told.value)}
    with pytest.raises(
        ModelError, match=r"but Model failed: [^\x1b\n]*`call\(\)` method implemented[^\x1b\n]*$"
    ):
        sned.trace(keras.Model(), sequence())


def test_states_and_tables_that_cannot_be_followed_are_told() -> None:
    kept = keras.Sequential(
        [keras.Input((5, 6), batch_size=2), layers.GRU(4, stateful=True, name="memory"), layers.Dense(3)]
    )
    with pytest.raises(ModelError, match=r"GRU \(layer 'memory'\) keeps its state.*`stateful=False`"):
        sned.trace(kept, sequence())
    if keras.backend.backend() == "tensorflow":
        table = layers.StringLookup(vocabulary=["a", "b"], name="table")
        text = keras.Sequential(
            [keras.Input((3,), dtype="string"), table, layers.Embedding(4, 8), layers.Dense(3)]
        )
        with pytest.raises(ModelError, match=r"StringLookup \(layer 'table'\).*Prune the model behind it"):
            sned.trace(text, np.array([["a", "b", "a"]]))


def test_plans_fit_another_model_made_by_the_same_code() -> None:
    one, x = made("bidirectional")
    plan = sned.plan(sned.trace(one, x), sparsity=0.5)
    other, _ = made("bidirectional")
    assert sned.apply(other, plan).count_params() < other.count_params()
    with pytest.raises(sned.SnedError, match=r"another network|network"):
        sned.apply(made("residual")[0], plan)


def test_pruned_models_are_saved_in_the_format_of_keras(tmp_path: Path) -> None:
    model, x = made("residual")
    small = sned.apply(model, sned.plan(sned.trace(model, x), sparsity=0.5))
    with pytest.raises(CheckpointError, match=r"ends in '\.keras'"):
        sned.save(small, tmp_path / "small.safetensors")
    sned.save(small, tmp_path / "small.keras")
    again = sned.load(None, tmp_path / "small.keras")
    assert again.count_params() == small.count_params()
    (tmp_path / "small.keras").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"could not be loaded"):
        sned.load(None, tmp_path / "small.keras")
    silent = keras.Sequential([keras.Input((6,)), Named(), layers.Dense(3)])
    silent.save(tmp_path / "named.keras")
    with pytest.raises(
        CheckpointError, match=r"named\.keras could not be loaded.*'Named'.*sned\.load\(model"
    ) as told:
        sned.load(None, tmp_path / "named.keras")
    assert len(str(told.value)) < 600
    assert "build_config" not in str(told.value)
    assert sned.load(silent, tmp_path / "named.keras").count_params() == silent.count_params()
    with pytest.raises(CheckpointError, match=r"no file"):
        sned.load(None, tmp_path / "none.keras")


@pytest.mark.parametrize(
    ("setting", "chosen"), [("none", "torch"), ("tensorflow", "torch"), ("theano", None), ("broken", "torch")]
)
def test_pytorch_is_chosen_where_nobody_chose(
    setting: str, chosen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sned.surgery.keras import backend

    monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    monkeypatch.setattr(backend, "HOME", tmp_path / "keras.json")
    if setting != "none":
        (tmp_path / "keras.json").write_text("{" if setting == "broken" else json.dumps({"backend": setting}))
    backend.choose_backend()
    assert os.environ.get("KERAS_BACKEND") == chosen


def test_a_backend_that_is_not_installed_is_told() -> None:
    code = "import sned; sned.load(None, 'none.keras')"
    environ = {**os.environ, "KERAS_BACKEND": "theano", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=False
    )
    assert "Keras is set to the backend 'theano'" in ended.stderr
    assert "KERAS_BACKEND=torch" in ended.stderr


class Sequence(keras.utils.PyDataset):
    """Three batches with labels."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return images()[:, :, :, :] + index, np.zeros(2)


@pytest.mark.parametrize(
    "given",
    [
        np.concatenate([images()] * 3),
        [images(), (images(), np.zeros(2)), [images(), np.zeros(2), np.ones(2)]],
        [(images(),), [images()], images()],
        (images() for _ in range(3)),
        Sequence(),
    ],
    ids=["array", "list", "alone", "generator", "PyDataset"],
)
def test_calibration_is_whatever_fit_takes(given: Any) -> None:
    found = [batch for (batch,) in batches(given, images())]
    assert sum(map(len, found)) == 6
    assert all(tuple(batch.shape[1:]) == (8, 8, 3) for batch in found)


def test_calibration_from_tf_data() -> None:
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((np.concatenate([images()] * 3), np.zeros(6))).batch(4)
    assert [len(batch) for (batch,) in batches(data, images())] == [4, 2]


def test_several_inputs_are_told_from_labels() -> None:
    pair = {"a": np.ones((2, 3), "float32"), "b": np.ones((2, 4), "float32")}
    ((found,),) = batches([(pair, np.zeros(2))], pair)
    assert set(found) == {"a", "b"}
    ((both,),) = batches([[pair["a"], pair["b"]]], [pair["a"], pair["b"]])
    assert [tuple(t.shape) for t in both] == [(2, 3), (2, 4)]


def test_several_inputs_come_as_the_example_has_them() -> None:
    one, two = np.ones((40, 3), "float32"), np.ones((40, 4), "float32")
    for given in ([((one, two), np.zeros(40))], [((one, two),)], [(one, two)], [[one, two]]):
        ((found,),) = batches(given, [one, two])
        assert type(found) is list
        assert [tuple(t.shape) for t in found] == [(40, 3), (40, 4)]
    whole = [found for (found,) in batches([one, two], [one[:2], two[:2]])]
    assert [tuple(t.shape) for found in whole for t in found] == [(32, 3), (32, 4), (8, 3), (8, 4)]


@pytest.mark.parametrize("given", [5, ["text"], [({"a": None}, 1)], {"a": None}])
def test_calibration_of_the_wrong_kind_is_refused(given: Any) -> None:
    with pytest.raises(CalibrationError, match=r"[Cc]alibration"):
        list(batches(given, images()))


def test_a_batch_of_text_is_told_of_once() -> None:
    model, x = made("sequential_cnn")
    with pytest.raises(
        CalibrationError, match=r"^Calibration batch 1 must be an array of numbers.*got ndarray[^.]*\.$"
    ):
        sned.prune(model, x, budget=sned.Budget(macs="60%"), calibration=[images(), np.array(["a"])])


@pytest.mark.skipif(TORCH, reason="there is a child under other backends only")
def test_the_child_tells_its_errors_and_its_death() -> None:
    from sned.surgery.keras.client import CHILDREN

    class Local(layers.Layer):
        def call(self, x: Any) -> Any:
            return x

    inputs = keras.Input((6,))
    hidden = keras.Model(inputs, layers.Dense(3)(Local()(inputs)))
    with pytest.raises(ModelError, match=r"Local.*importable by another process"):
        sned.trace(hidden, sequence(1, 6)[:, 0])
    model, x = made("residual")
    sned.trace(model, x)
    process = CHILDREN["torch"]._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert sned.trace(model, x).groups  # another one is started


@pytest.mark.skipif(TORCH, reason="there is a child under other backends only")
def test_ctrl_c_ends_the_child_too() -> None:
    from sned.surgery.keras.client import CHILDREN

    model, x = made("residual")
    CHILDREN["torch"].end()  # the next one is still starting when it comes
    # A shell that runs it in the background has the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            sned.trace(model, x)
    finally:
        signal.signal(signal.SIGINT, before)
    assert CHILDREN["torch"]._process is None
    assert sned.trace(model, x).groups


@pytest.mark.skipif(TORCH, reason="there is a child under other backends only")
def test_the_child_dies_with_its_parent() -> None:
    code = (
        "import os, signal, keras, numpy as np, sned\n"
        "from sned.surgery.keras.client import CHILDREN\n"
        "m = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(2)])\n"
        "sned.trace(m, np.ones((2, 4), 'float32'))\n"
        "print(CHILDREN['torch']._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(ended.stdout.split()[-1])
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            return
        import time

        time.sleep(0.1)
    pytest.fail("the child outlived its parent")
