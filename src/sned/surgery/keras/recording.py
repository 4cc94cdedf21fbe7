"""Record a Keras model under the PyTorch backend, and rehearse what can be cut.

What is run is a twin without values (`twin.py`); the user's model is not run and not touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import keras
import torch

from sned.errors import ModelError
from sned.graph.build import build
from sned.graph.example import Example
from sned.graph.formulas import Attribute, Formula, Sized, Source, TensorAxis
from sned.graph.ir import Graph
from sned.graph.plan import Plan
from sned.graph.provenance import Scale, Use, functions_opened
from sned.graph.recording import Recorded, Recording
from sned.graph.replay import overload, sizes_of
from sned.graph.sizes import Sizes
from sned.graph.trace import recorded
from sned.surgery.attributes import Unrepaired, check_sizes
from sned.surgery.keras.configuration import (
    configuration,
    edited,
    inner_inputs,
    name_of,
    number_at,
    owner,
    reason_of,
    sized,
)
from sned.surgery.keras.naming import layers_of, variables_of
from sned.surgery.keras.network import Holder
from sned.surgery.keras.outside import within_keras
from sned.surgery.keras.precision import in_single_precision
from sned.surgery.keras.twin import (
    BUILT,
    Shape,
    Twin,
    Unmade,
    check_alike,
    conversions_traced,
    dtypes_told,
    make_twin,
    shapes_traced,
)
from sned.surgery.probe import rehearsed
from sned.surgery.solving import solved


class Place(str):
    """The name of a device as Keras wants it, equal to the device as PyTorch tells it and to nothing else.

    Keras asks whether a tensor is on the device in use, and copies it where the two differ; and it asks whether that
    device is called "meta", and leaves ops out where it is.
    """

    __hash__ = str.__hash__

    def lower(self) -> Place:
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, torch.device) and str(self) == str(other)

    def __ne__(self, other: object) -> bool:
        return not self == other


class Forward(Holder):
    """A Keras model as a PyTorch module whose tensors can be exchanged."""

    def __init__(self, model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(model, tensors)
        self._sned_paths = {id(layer): path for path, layer in layers_of(model).items()}
        self._variables = [held.variable for held in variables_of(model)]

    @staticmethod
    def of(model: Any, tensors: Mapping[str, torch.Tensor]) -> Forward:
        """The module of a model; its class is called as the model's is."""
        kind: type[Forward] = type(type(model).__name__, (Forward,), {})
        return kind(model, tensors)

    def forward(self, *args: Any) -> Any:
        """What the model returns, on the device of its inputs."""
        mapping = list(zip(self._variables, self.tensors(), strict=True))
        try:
            with on_device_of(args), keras.StatelessScope(mapping, initialize_variables=False):
                return self.keras(*args, training=self.training)
        except Exception as error:
            # Keras adds a page of what the layers around it were called with.
            shortly, reason = copy.copy(error), reason_of(error)
            shortly.args = (reason,)
            raise shortly from error


@contextmanager
def on_device_of(args: Any) -> Iterator[None]:
    """Let Keras make its tensors where the arguments are."""
    first = next(t for t in keras.tree.flatten(args) if isinstance(t, torch.Tensor))
    with keras.device(Place(str(first.device))):
        yield


def record(model: Any, example: Example, backend: str = "torch") -> Graph:
    """The graph of a Keras model under the PyTorch backend, rehearsed; it keeps no model.

    Args:
        model: a built model; it is not touched.
        example: its inputs, one positional argument.
        backend: the one that the pruned model will run on.

    Raises:
        ModelError: the model does not run on them, or cannot be made anew from its configuration.
    """
    config = configuration(model)
    state = {name: tensor.detach() for name, tensor in Holder(model).named_tensors()}
    with functions_opened(), conversions_traced(model), shapes_traced():
        twin = make_twin(sized(config), model, example)
    check_alike(model, twin.model)
    run = _run(twin.model, state, example)
    found = _placed(run, twin, config)
    shapes = _shapes_in_order(twin)

    def rehearse(graph: Graph, plan: Plan) -> None:
        if backend == "jax":
            _check_attention(graph, plan, model)
        _rehearse(graph, plan, config, model, shapes)

    return _plain(rehearsed(build(found), rehearse))


def recorded_plainly(model: Any, example: Example) -> Graph:
    """The graph of a model as it is, without asking what could be cut."""
    state = {name: tensor.detach() for name, tensor in Holder(model).named_tensors()}
    twin = make_twin(configuration(model), model, example)
    check_alike(model, twin.model)
    run = _run(twin.model, state, example)
    return _plain(build(replace(run, outputs_last=True)))


def _run(model: Any, state: Mapping[str, torch.Tensor], example: Example) -> Recorded:
    """What a model does.

    Raises:
        ModelError: it draws random numbers, so that no other one could be held against it.
    """
    with within_keras(), dtypes_told(), conversions_traced(model), in_single_precision(model):
        run = recorded(Forward.of(model, state), example)
    read = set(run.main.outputs)
    for op in reversed(run.main.ops):
        if not read.isdisjoint(op.outputs):  # recurrent layers draw masks that nothing reads
            read.update(op.inputs)
            if torch.Tag.nondeterministic_seeded in overload(op.target).tags:
                raise ModelError(
                    f"A Keras model must answer the same each time, but the layer {op.module!r} draws random numbers "
                    "in inference too. Prune the model up to that layer and the one behind it apart "
                    "(`keras.Model(model.inputs, …)`), and put them together again afterwards."
                )
    return run


def _plain(graph: Graph) -> Graph:
    """A graph that can cross to another process: without the model."""
    kept = replace(graph.recorded, model=None, main=replace(graph.recorded.main, calls=[]), trained=None)
    return replace(graph, model=None, recorded=kept)


def _shapes_in_order(twin: Twin) -> list[str | None]:
    """The name of the tensor of each variable in the order in which they are made; None for seeds and the like."""
    names = {id(held.variable): held.path for held in variables_of(twin.model)}
    return [names.get(id(variable)) for variable, _ in twin.made]


def _placed(found: Recorded, twin: Twin, config: Any) -> Recorded:
    """The recording with the sizes of variables, and of the inputs of inner models, that the configuration gives."""
    main, entered = found.main, _first_given(found.main, twin)
    names = {id(held.variable): held.path for held in variables_of(twin.model)}
    uses = list(_inputs(main, twin, config))
    same: dict[Source, Source] = {}
    for variable, shape in twin.made:
        number = main.parameters.get(names.get(id(variable), ""))
        for axis, size in enumerate(shape) if number is not None else ():
            formula = _known(size.formula, entered) if isinstance(size, Sized) else None
            if isinstance(formula, Formula) and number is not None:
                uses.append(Use(formula, int(size), 0, 0, None, at=(number, axis)))
                if not formula.operation:
                    (source,) = formula.sources
                    same.setdefault(source, TensorAxis(number, axis))
    main = replace(main, uses=[*uses, *_all_known(main.uses, entered)], calls=[])
    for held in (main.scales, main.leaks):
        held[:] = _all_over(held, entered, same)
    return replace(found, main=main, outputs_last=True)


Entered = Mapping[tuple[int, str], int]
"""The tensors that layers were first called with, by (identity of the layer, place or name of the argument)."""


def _first_given(main: Recording, twin: Twin) -> Entered:
    layers = layers_of(twin.model)
    found: dict[tuple[int, str], int] = {}
    for call in main.given:
        named = {name: numbers[0] for name, numbers in call.named.items() if len(numbers) == 1}
        for place, number in (*enumerate(call.args), *named.items()):
            if call.path in layers and number is not None:
                found.setdefault((id(layers[call.path]), str(place)), number)
    return found


def _known(formula: Formula, entered: Entered) -> Formula | int | float:
    """A formula over the axes that layers were called with, in the place of what they were built for.

    A number where nothing is left that it could depend on.
    """
    if not formula.operation:
        (source,) = formula.sources
        if not isinstance(source, Attribute) or not source.module.startswith(BUILT):
            return formula
        layer, (place, _, argument) = int(source.module.removeprefix(BUILT)), source.name.partition(" ")
        number = entered.get((layer, argument), entered.get((layer, place)))
        if number is None or source.item is None:
            return formula.value
        return Formula(frozenset([TensorAxis(number, source.item)]), formula.value)
    operands = tuple(_known(o, entered) if isinstance(o, Formula) else o for o in formula.operands)
    sources = frozenset[Source]().union(*(o.sources for o in operands if isinstance(o, Formula)))
    made = Formula(sources, operation=formula.operation, operands=operands)
    return made if sources else made.evaluate({})


def _all_known(uses: Sequence[Use], entered: Entered) -> Iterator[Use]:
    for use in uses:
        formula = _known(use.formula, entered)
        equals = _known(use.equals, entered) if use.equals is not None else None
        if isinstance(formula, Formula) and (equals is None or isinstance(equals, Formula)):
            yield use._replace(formula=formula, equals=equals)


def _all_over(held: Sequence[Any], entered: Entered, same: Mapping[Source, Source]) -> list[Any]:
    """Factors as functions of the axes that variables got, rather than of the numbers that gave those."""
    found = []
    for item in held:
        formula = _known(item.formula if isinstance(item, Scale) else item, entered)
        if isinstance(formula, Formula):
            formula = formula.over(same)
            found.append(replace(item, formula=formula) if isinstance(item, Scale) else formula)
    return found


def _inputs(main: Recording, twin: Twin, config: Any) -> Iterator[Use]:
    """What inner models are called with, and where the shapes of their inputs stand in the configuration."""
    layers, places = layers_of(twin.model), dict(inner_inputs(config))
    for call in main.given:
        inner = layers.get(call.path) if call.path else None
        shapes = [] if inner is None else places.get(inner.name, [])
        for number, place in zip(call.args, shapes, strict=False):
            for axis, size in enumerate(main.tensors[number].shape) if number is not None else ():
                item = place._replace(item=axis)
                if number is not None and number_at(config, item) == size:
                    yield Use(Formula(frozenset([item]), size), size, 0, 0, None, at=(number, axis))


def _rehearse(
    graph: Graph, plan: Plan, config: Mapping[str, Any], model: Any, order: Sequence[str | None]
) -> None:
    sizes = sizes_of(graph, plan)
    news = solved(graph, sizes)
    try:
        small = make_twin(edited(config, news), model, graph.example)
        made: tuple[tuple[Any, Shape], ...] = small.made
        failure = ""
    except Unmade as error:
        small, made, failure = None, error.made, error.reason
    part = _first_wrong(graph, sizes, made, order)
    if part is not None:
        raise Unrepaired(None, _not_in_configuration(graph, part, config), elsewhere=True, part=part)
    if small is None:
        raise Unrepaired(None, f"Keras cannot make the model without some of it ({failure})", elsewhere=True)
    state = {
        name: torch.zeros(
            sizes.shape(number),
            dtype=getattr(torch, graph.tensors[number].dtype),
            device=graph.recorded.device,
        )
        for name, number in graph.parameters.items()
    }
    whole = {name: tensor for name, tensor in graph.model.named_tensors() if name not in state}
    check_sizes(Forward(small.model, {**whole, **state}), graph, sizes)


def _check_attention(graph: Graph, plan: Plan, model: Any) -> None:
    """Refuse that keys and values get different dimensions: the op that JAX has for attention takes equal ones.

    Raises:
        Unrepaired: they would.
    """
    for path, layer in layers_of(model).items():
        if not isinstance(layer, keras.layers.MultiHeadAttention) or layer._dropout:
            continue
        owners = {
            name: {g.name for g in graph.groups for s in g.slices if (s.parameter, s.axis) == (name, 2)}
            for name in (f"{path}.query.kernel", f"{path}.value.kernel")
        }
        both = set.intersection(*owners.values())
        for name, groups in owners.items():
            if (groups - both) & {*plan.removed}:
                reason = (
                    "JAX takes keys and values of equal dimensions alone, and these would lose differently"
                )
                raise Unrepaired(None, reason, elsewhere=True, part=(name, 2))


def _first_wrong(
    graph: Graph, sizes: Sizes, made: Sequence[tuple[Any, Shape]], order: Sequence[str | None]
) -> tuple[str, int] | None:
    """The first axis of a variable that did not come out as planned."""
    for name, (_, shape) in zip(order, made, strict=False):
        number = graph.parameters.get(name or "")
        if number is None:
            continue
        wanted = sizes.shape(number)
        for axis in reversed(range(len(wanted))):
            if len(shape) != len(wanted) or int(shape[axis]) != wanted[axis]:
                return name or "", axis
    return None


def _not_in_configuration(graph: Graph, part: tuple[str, int], config: Mapping[str, Any]) -> str:
    """Why an axis did not follow the configuration."""
    number = graph.parameters[part[0]]
    found = [use.formula for use in graph.uses if use.at == (number, part[1])]
    places = sorted({s for formula in found for s in formula.sources if isinstance(s, Attribute)}, key=str)
    if not places:
        return "its size is in no layer's configuration, so Keras could not load the model again"
    shown = " and ".join(f"`{name_of(place)}` of {owner(config, place)!r}" for place in places)
    return f"its size follows from {shown} together with others that lose differently"
