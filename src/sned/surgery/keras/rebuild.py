"""Surgery on a Keras model: rebuilt on the user's backend from its edited configuration, filled, and proved right."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import torch

from sned.errors import SnedError, SurgeryError
from sned.graph.example import Example, tensors_in
from sned.graph.ir import Graph
from sned.graph.plan import Plan
from sned.graph.replay import Replay, sizes_of, slice_state
from sned.surgery.keras.arrays import to_array, to_tensor
from sned.surgery.keras.configuration import classes_of, configuration, edited, reason_of, rebuilt
from sned.surgery.keras.naming import layers_of, share_constants, variables_of
from sned.surgery.keras.precision import in_single_precision
from sned.surgery.outputs import largest_difference, shaken
from sned.surgery.solving import made_up, solved


def cut(model: Any, graph: Graph, plan: Plan, state: Mapping[str, torch.Tensor]) -> Any:
    """A smaller model of the same classes, not verified yet.

    Args:
        model: the dense model; it is not touched.
        graph: its trace.
        plan: what to remove.
        state: its tensors by name.

    Raises:
        SurgeryError: it does not come out as the plan has it.
    """
    news = solved(graph, sizes_of(graph, plan))
    try:
        with quickly_made():
            small = built(rebuilt(edited(configuration(model), news), model), graph.example, like=model)
    except SnedError:
        raise
    except Exception as error:  # constructors of any layer may raise anything
        raise SurgeryError(
            f"A pruned Keras model is made from its configuration, but that failed: {type(error).__name__}: {error}. "
            "The original was not touched. Please report it."
        ) from error
    fill(small, made_up(graph, plan, slice_state(state, plan)))
    hand_over(model, small)
    return small


@contextlib.contextmanager
def quickly_made() -> Iterator[None]:
    """Let weights start as zeros instead of random: they are given their values afterwards."""
    original = keras.Variable.__init__

    def made(self: Any, initializer: Any, shape: Any = None, dtype: Any = None, **kwargs: Any) -> None:
        random = isinstance(initializer, keras.initializers.Initializer) and shape is not None
        if random:
            initializer = keras.initializers.Zeros()
        original(self, initializer, shape, dtype, **kwargs)

    keras.Variable.__init__ = made
    try:
        yield
    finally:
        keras.Variable.__init__ = original


def built(model: Any, example: Example, *, like: Any) -> Any:
    """The model with its variables: one of the user's own class makes them when it is first called."""
    if not model.built or len(variables_of(model)) < len(variables_of(like)):
        model(*inputs_like(example))
    return model


def inputs_like(example: Example, batch: int | None = None, seed: int = 0) -> Any:
    """Random inputs as the model takes them, on the backend in use."""
    args, _ = example.random(batch, seed)
    return keras.tree.map_structure(lambda t: keras.ops.convert_to_tensor(to_array(t)), args)


def fill(small: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Give every variable the value of its tensor.

    Raises:
        SurgeryError: a variable has another shape; none was changed.
    """
    held = variables_of(small)
    for one in held:
        shape = tuple(map(int, one.variable.shape))
        wanted = tuple(state[one.path].shape) if one.path in state else None
        if shape != wanted:
            raise SurgeryError(
                f"A pruned model must have the shapes of its plan, but {one.path!r} has {shape} instead of {wanted}. "
                "The original was not touched. Please report this model."
            )
    for one in held:
        one.variable.assign(to_array(state[one.path]))


def hand_over(model: Any, small: Any) -> None:
    """Give the pruned model what its configuration does not hold: flags, tables of preprocessing, compile settings."""
    share_constants(model, small)
    ours, theirs = layers_of(model), layers_of(small)
    for path, layer in ours.items():
        if path in theirs and theirs[path].trainable != layer.trainable:
            theirs[path].trainable = layer.trainable
        if path in theirs and theirs[path].dtype_policy != layer.dtype_policy:
            theirs[path].dtype_policy = layer.dtype_policy  # a model itself does not write its own down
    flags = {held.path: held.variable.trainable for held in variables_of(model)}
    for held in variables_of(small):  # those of a layer may differ from it
        if held.variable.trainable != flags.get(held.path, held.variable.trainable):
            held.variable.trainable = flags[held.path]
    for path, layer in ours.items():
        if path in theirs and hasattr(layer, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                layer.save_assets(folder)
                theirs[path].load_assets(folder)
    if getattr(model, "compiled", False):
        _compile_alike(model, small)


def _compile_alike(model: Any, small: Any) -> None:
    """Compile as a model was: losses and functions are shared, optimisers and metrics made anew, registered or not."""
    noted = getattr(model, "_compile_config", None)  # what `compile` was given, before it is written down
    unknown = type(model).compile is not keras.Model.compile and not small.compiled
    failed = f"{type(model).__name__} has a `compile` of its own"
    try:
        if noted is None or unknown:
            with classes_of(model):
                small.compile_from_config(model.get_compile_config())
        else:
            keras.Model.compile(small, **keras.tree.map_structure(_fresh, dict(noted.config)))
        failed = "" if small.compiled else failed
    except Exception as error:  # noqa: BLE001 (an optimiser or a metric of the user's own may raise anything)
        failed = f"{type(error).__name__}: {reason_of(error)}"
    if failed:
        warnings.warn(
            f"The pruned model could not be compiled as the original was: {failed}. Call its `compile` before you "
            "train or evaluate it; optimisers and metrics are made anew, from what their `get_config` returns.",
            stacklevel=2,
        )
        return
    if getattr(small, "optimizer", None) is not None and small.built:
        small.optimizer.build(small.trainable_variables)


def _fresh(value: Any) -> Any:
    """A copy of what keeps state of the model that it trains."""
    if isinstance(value, keras.optimizers.Optimizer | keras.metrics.Metric):
        return type(value).from_config(value.get_config())
    return value


def verify(small: Any, graph: Graph, plan: Plan, state: Mapping[str, torch.Tensor]) -> float:
    """Run a pruned model on its backend beside the replay of the recorded ops, on random inputs, at two batch sizes.

    Returns:
        The largest difference, relative to the largest output.

    Raises:
        SurgeryError: they differ by more than rounding.
    """
    real = {name: tensor for name, tensor in state.items() if name not in graph.aliases}
    tried = shaken(real)
    replay = Replay(graph, tried, plan)
    with _values(
        small, made_up(graph, plan, replay.state), when=any(tried[name] is not real[name] for name in real)
    ):
        batches = (2, 1) if graph.batched else (None,)
        return max(_difference(small, graph, replay, batch) for batch in batches)


@contextlib.contextmanager
def _values(small: Any, state: Mapping[str, torch.Tensor], *, when: bool) -> Any:
    """Other values for a while."""
    before = (
        [(one.variable, keras.ops.convert_to_numpy(one.variable.value).copy()) for one in variables_of(small)]
        if when
        else []
    )
    if when:
        fill(small, state)
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def answers(model: Any, args: Any) -> Any:
    """What a model answers in inference, one of mixed precision in single precision."""
    with in_single_precision(model):
        return _answers(model, args)


def _answers(model: Any, args: Any) -> Any:
    """Compiled where each op by itself would be compiled anew."""
    if keras.backend.backend() != "jax":
        return model(*args, training=False)
    import jax

    variables = [*model.trainable_variables, *model.non_trainable_variables]

    def call(values: Any, given: Any) -> Any:
        # Not `stateless_call`: that takes no model whose own `call` lacks `training`.
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return model(*given, training=False)

    return jax.jit(call)([variable.value for variable in variables], args)


def _difference(small: Any, graph: Graph, replay: Replay, batch: int | None) -> float:
    args, _ = graph.example.random(batch)
    with torch.no_grad():
        expected, _ = replay.run((args, {}))
        made = answers(small, inputs_like(graph.example, batch))
    got = [to_tensor(value).cpu() for value in keras.tree.flatten(made)]
    return largest_difference(got, [t.cpu() for t in tensors_in(expected)], batch or graph.batch)
