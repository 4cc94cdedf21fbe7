"""The stages for Keras models: trace, cut, save and load; and a model as the stages after the trace take it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import keras

from sned.errors import CheckpointError, ExampleError, ModelError, PlanError, SnedError
from sned.files import atomic_path
from sned.graph.example import Example, Inputs, describe
from sned.graph.ir import Graph
from sned.graph.layers import chosen_layers
from sned.graph.plan import Plan, check_fits
from sned.graph.trace import state_of
from sned.surgery.keras.arrays import batches, tensors
from sned.surgery.keras.configuration import classes_of, reason_of
from sned.surgery.keras.depth import shortened
from sned.surgery.keras.naming import layers_of, variables_of
from sned.surgery.keras.network import Network
from sned.surgery.keras.passages import Passage, passages
from sned.surgery.keras.rebuild import cut, verify
from sned.surgery.keras.recurrent import warn_of_steps

SUFFIX = ".keras"

_graphs: WeakValueDictionary[int, Graph] = WeakValueDictionary()
"""The graphs that are in use, by the identity of their Keras model, which they keep alive."""

_plans: WeakKeyDictionary[Any, tuple[Plan, ...]] = WeakKeyDictionary()
"""The plans that made a pruned model."""


def network_of(model: Any) -> Network:
    """A Keras model as the stages take it, with the values that it has now."""
    if isinstance(model, Network):
        return model
    if not model.built:
        raise ModelError(
            f"A Keras model must have its variables, but {type(model).__name__} was not built yet. Call it on an input "
            "once."
        )
    _check_followed(model)
    return Network.of(model)


LOOKUPS = frozenset({"Hashing", "HashedCrossing", "IntegerLookup", "StringLookup", "TextVectorization"})
"""Layers of Keras that work under TensorFlow alone."""


def _check_followed(model: Any) -> None:
    """Refuse layers that cannot be recorded.

    Raises:
        ModelError: there is one.
    """
    for layer in model._flatten_layers():
        if type(layer).__name__ in LOOKUPS:
            raise ModelError(
                f"A Keras model must compute with numbers alone, but {type(layer).__name__} (layer {layer.name!r}) "
                "looks them up in tables of TensorFlow. Prune the model behind it, which takes the numbers, such as "
                "`keras.Sequential(model.layers[1:])`, and put the two together again afterwards."
            )
        if getattr(layer, "stateful", False):
            raise ModelError(
                f"A Keras model must answer each batch by itself, but {type(layer).__name__} (layer {layer.name!r}) "
                "keeps its state from batch to batch. Make the model with `stateful=False` and give it the weights "
                "(`set_weights`), prune that one, and make it stateful again afterwards if you must."
            )


def trace_keras(model: Any, example_inputs: Inputs) -> Graph:
    """`sned.trace` for a Keras model; `example_inputs` as `model.predict` takes them."""
    if isinstance(model, Network):
        return traced(model, describe(example_inputs))
    return traced(network_for(model, example_inputs), describe(inputs_of(example_inputs)))


def inputs_of(example_inputs: Inputs) -> tuple[Any]:
    """Example inputs as positional arguments: the one that a Keras model has, every array in it a tensor of PyTorch.

    Raises:
        ExampleError: they hold no array, or something else.
    """
    nest = tensors(example_inputs)
    if not keras.tree.flatten(nest):
        raise ExampleError("`example_inputs` must hold at least one array, as `model.predict` takes it.")
    return (_in_order(nest),)


def _in_order(nest: Any) -> Any:
    """Tables by their keys, as Keras flattens them and orders the inputs of a model."""
    if isinstance(nest, dict):
        return {key: _in_order(nest[key]) for key in sorted(nest)}
    return type(nest)(map(_in_order, nest)) if type(nest) in (list, tuple) else nest


def network_for(model: Any, example_inputs: Inputs) -> Network:
    """The network of a model, which is called on the example first where it was not built yet.

    Raises:
        ModelError: it does not run on the example.
        ExampleError: its inputs have other shapes.
    """
    if isinstance(model, Network):
        return model
    _check_shapes(model, example_inputs)
    # A model whose class has no `build` of its own counts as built once that was called, and has no variables.
    if not all(layer.built for layer in model._flatten_layers()):
        try:
            model(keras.tree.map_structure(keras.ops.convert_to_tensor, example_inputs))
        except Exception as error:
            raise ModelError(
                f"The model must run on the example inputs, but {type(model).__name__} failed: {reason_of(error)}."
            ) from error
    return network_of(model)


def _check_shapes(model: Any, example_inputs: Inputs) -> None:
    """Refuse arrays of other shapes than the inputs of a model have; Keras adds and drops a last axis of 1."""
    for tensor, given in _inputs_beside(model, example_inputs):
        wanted, got = tuple(tensor.shape), tuple(getattr(given, "shape", tensor.shape))
        taken = (wanted, (*wanted, 1), wanted[:-1] if wanted[-1:] == (1,) else wanted)
        if not any(_fits(got, shape) for shape in taken):
            raise ExampleError(
                f"`example_inputs` must have the shapes that the model takes, {_shown(wanted)} for {tensor.name!r}, "
                f"got {_shown(got)}. The first axis is the batch; a single input needs one too."
            )


def _inputs_beside(model: Any, example_inputs: Inputs) -> list[tuple[Any, Any]]:
    """The inputs of a model, where it knows them, beside what is given for them."""
    inputs = keras.tree.flatten(getattr(model, "inputs", None) or [])
    if isinstance(example_inputs, dict):
        return [(one, example_inputs[one.name]) for one in inputs if one.name in example_inputs]
    given = keras.tree.flatten(example_inputs)
    return list(zip(inputs, given, strict=True)) if len(inputs) == len(given) else []


def _fits(shape: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(b in (None, a) for a, b in zip(shape, wanted, strict=True))


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


def recorded_network(model: Any, example_inputs: Inputs) -> Network:
    """The network of a model, which can be run, but of which it is not known what can go."""
    network, example = network_for(model, example_inputs), describe(inputs_of(example_inputs))
    network.graph = replace(_recorded(network.keras, example, rehearse=False), model=network)
    return network


def traced(network: Network, example: Example) -> Graph:
    """The graph of a network, kept for `apply`.

    Raises:
        ModelError: a layer of it cannot lose units, since its weights are no longer numbers that can be chosen among.
    """
    for layer in network.keras._flatten_layers():
        if (mode := getattr(layer, "quantization_mode", None)) is not None:
            raise ModelError(
                f"Units are taken from weights in floats, but {type(layer).__name__} (layer {layer.name!r}) was "
                f"quantised to {mode}. Prune the model as it was before, and call `quantize` on what comes of it."
            )
    graph = _recorded(network.keras, example, rehearse=True)
    warn_of_steps(graph, network.keras)
    told = tuple(one.layer for one in passages(network.keras))
    network.graph = graph = replace(graph, model=network, told=told)
    _graphs[id(network.keras)] = graph
    return graph


def without_keras(graph: Graph, names: Sequence[str]) -> Graph:
    """`sned.without` for the graph of a Keras model."""
    chosen = _chosen(graph.model, names)
    if not chosen:
        return graph
    graph.model.pull()
    short = traced(_without(graph.model, chosen, graph.example), graph.example)
    return replace(short, bypassed=(*graph.bypassed, *(one.layer.name for one in chosen)))


def _chosen(network: Network, names: Sequence[str]) -> list[Passage]:
    """How the named layers can be left out."""
    known = {one.layer: one for one in passages(network.keras)}
    _refuse_coded(network.keras, names)
    return [known[layer] for layer in chosen_layers(list(known), names)]


def _refuse_coded(model: Any, names: Sequence[str]) -> None:
    """Refuse layers that no configuration says are called.

    Raises:
        PlanError: one is called by code of the user's own.
    """
    found = layers_of(model)
    for name in (name for name in names if name in found):
        holder = type(found[name.rpartition(".")[0]])
        if not holder.__module__.startswith("keras."):
            kind = holder.__name__
            raise PlanError(
                f"Layers can be left out of Functional and Sequential models, but {name!r} is called by code, in "
                f"`{kind}.call`, which would miss it. Give `{kind}` an argument that says which layers it makes and "
                "calls, or write it with the functional API."
            )


def _without(network: Network, chosen: Sequence[Passage], example: Example) -> Network:
    """The network without some of its layers."""
    return Network.of(shortened(network.keras, chosen, example, state_of(network)))


def _recorded(model: Any, example: Example, *, rehearse: bool) -> Graph:
    if keras.backend.backend() == "torch":
        from sned.surgery.keras.recording import record, recorded_plainly

        return (record if rehearse else recorded_plainly)(model, example)
    from sned.surgery.keras.client import recorded_by_child

    return recorded_by_child(model, example, rehearse=rehearse)


def pruned_keras(network: Network, graph: Graph, plan: Plan) -> tuple[Network, float]:
    """A pruned and verified network, and the largest difference to the replay."""
    small, difference = _cut(network, graph, plan)
    made = Network.of(small)
    made.graph = replace(_recorded(small, graph.example, rehearse=False), model=made)
    made.plans = (*network.plans, plan)
    return made, difference


def apply_keras(model: Any, plan: Plan) -> Any:
    """`sned.apply` for a Keras model."""
    network = network_of(model)
    if plan.bypassed:
        network = _without(network, _chosen(network, plan.bypassed), plan.example)
    graph = _known(network, plan)
    if graph is None:
        try:
            graph = traced(network, plan.example)
        except ModelError as error:
            raise PlanError(f"The plan was made for another network: {error}") from error
        check_fits(plan, graph)
    small, _ = _cut(network, graph, plan)
    return small


def _cut(network: Network, graph: Graph, plan: Plan) -> tuple[Any, float]:
    state = state_of(network)
    small = cut(network.keras, graph, plan, state)
    difference = verify(small, graph, plan, state)
    _plans[small] = (*_plans.get(network.keras, ()), plan)
    return small, difference


def _known(network: Network, plan: Plan) -> Graph | None:
    """The graph that a plan was made from, where the model has the same shapes still."""
    graph = _graphs.get(id(network.keras))
    if graph is None or graph.fingerprint != plan.fingerprint or graph.example != plan.example:
        return None
    shapes = {held.path: tuple(map(int, held.variable.shape)) for held in variables_of(network.keras)}
    same = all(shapes.get(name) == graph.tensors[number].shape for name, number in graph.parameters.items())
    try:
        check_fits(plan, graph)
    except SnedError:
        return None
    return graph if same else None


def handed(network: Any) -> Any:
    """The Keras model of a network, with the values that the network has now."""
    if not isinstance(network, Network):
        return network
    network.push()
    return network.keras


def calibration_of(given: Any, example_inputs: Inputs) -> Iterator[Any] | None:
    """Calibration batches as the stages take them, without labels."""
    return None if given is None else batches(given, example_inputs)


def evaluate_of(evaluate: Callable[[Any], float] | None) -> Callable[[Any], float] | None:
    """The user's measure, asked about the Keras model that a network holds."""
    return None if evaluate is None else lambda network: evaluate(handed(network))


def save_keras(model: Any, path: Path) -> None:
    """Write a model in Keras's own format, whole or not at all."""
    if path.suffix != SUFFIX:
        raise CheckpointError(
            f"A pruned Keras model is a plain one and is saved in Keras's own format: give a path that ends in "
            f"{SUFFIX!r}, got {path.name!r}."
        )
    with atomic_path(path) as beside:
        handed(model).save(beside)


def load_keras(model: Any, path: Path) -> Any:
    """Read a model that `save_keras` or Keras wrote; `model` (or None) tells the classes of the user's own.

    Raises:
        CheckpointError: the file is missing or damaged, or a class in it is not known.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}. Check the path.")
    try:
        if model is None:
            return keras.saving.load_model(path)
        with classes_of(model):
            return keras.saving.load_model(path)
    except Exception as error:
        raise CheckpointError(
            f"{path.name} could not be loaded by Keras: {reason_of(error)}. Import the modules of your own classes "
            "first, or give a model that is made of them: `sned.load(model, path)`."
        ) from error
