"""Surgery on a PyTorch module: slice its tensors, repair the numbers in its attributes, prove the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sned.errors import ModelError, PlanError, SnedError, SurgeryError
from sned.graph.example import ArgsAndKwargs
from sned.graph.ir import Graph
from sned.graph.plan import Plan, check_fits
from sned.graph.replay import Replay, sizes_of, slice_state
from sned.graph.trace import check_values, device_of, mode_of, plain_kernels, state_of, undisturbed
from sned.graph.untouched import Untouched
from sned.surgery.attributes import check_sizes, repair_attributes
from sned.surgery.depth import without
from sned.surgery.home import moved_inputs
from sned.surgery.keras import is_keras
from sned.surgery.masks import cut_masks, hold_masks
from sned.surgery.outputs import answered, largest_difference, shaken
from sned.surgery.probe import known, trace_example
from sned.surgery.solving import made_up
from sned.surgery.twin import twin

VERIFIED = 2
"""Rows of the random inputs on which a pruned network is run beside the replay; then it is run on the first alone."""

PLAN_ATTRIBUTE = "_sned_plan"
"""Where a pruned network carries its plan, so that `save` needs nothing else."""


def apply(model: Any, plan: Plan) -> Any:
    """A smaller network of the same class; `model` is not touched.

    The copy is run beside the replay of the recorded ops on the sliced weights, at two batch sizes where the network
    takes them; it is handed over only when both give the same output. A pruned Keras model is a plain one, with edited
    layer configurations; layer names, trainable flags and compile settings are those of `model`.

    Args:
        model: the network that the plan was made for, or a copy of it with any weights.
        plan: what to remove.

    Returns:
        The pruned network, in the mode (train or eval) of `model`.

    Raises:
        PlanError: the plan was made for another network.
        SurgeryError: the pruned module does not compute what the plan promises.

    Example:
        >>> small = sned.apply(model, sned.plan(sned.trace(model, x), sparsity=0.5))
    """
    if not isinstance(plan, Plan):
        raise PlanError(
            f"`plan` must be a `Plan`, as `sned.plan` or `Plan.from_json` makes it, got {type(plan).__name__}."
        )
    if is_keras(model):
        from sned.surgery.keras.road import apply_keras

        return apply_keras(model, plan)
    graph = known(model, plan)
    if graph is not None:
        try:
            check_fits(plan, graph)
            return pruned(model, graph, plan).model
        except SnedError:  # unless the model was changed since, the same error comes from a new trace
            pass
    graph = graph_for(model, plan)
    return pruned(graph.model, graph, plan).model


def graph_for(model: nn.Module, plan: Plan) -> Graph:
    """The graph of `model`, or of what the plan's layers leave of it, once the plan is known to fit.

    Raises:
        PlanError: the plan was made for another network.
    """
    graph = without(trace_example(model, plan.example), plan.bypassed)
    check_fits(plan, graph)
    return graph


@dataclass(frozen=True)
class Pruned:
    """A pruned network, and the largest difference to the replay that was found, relative to the largest output."""

    model: nn.Module
    difference: float


def pruned(model: Any, graph: Graph, plan: Plan) -> Pruned:
    """`apply`, for a plan that is known to fit the graph of this very model."""
    if is_keras(model):
        from sned.surgery.keras.road import pruned_keras

        return Pruned(*pruned_keras(model, graph, plan))
    check_values(state_of(model))
    with undisturbed():
        sliced = slice_state(state_of(model), plan)
        small = cut(model, graph, plan, sliced)
        try:
            return Pruned(small, verify(small, graph, plan, sliced))
        except Exception as error:  # the user's forward may raise anything
            check_sizes(small, graph, sizes_of(graph, plan))  # says where, if it can
            if isinstance(error, SnedError):
                raise
            _check_runs(model, graph)
            raise SurgeryError(
                "A pruned network must run as the original does, but it raised "
                f"{type(error).__name__}: {error}. The original was not touched. Please report it."
            ) from error


def _check_runs(model: nn.Module, graph: Graph) -> None:
    """Refuse an example that the original does not take either: without values, dtypes pass that clash with them."""
    try:
        with torch.no_grad(), mode_of(model, training=False):
            answered(model, graph.written, _inputs(graph, None, device_of(state_of(model))))
    except Exception as error:
        raise ModelError(
            f"The model must run on random inputs like the example, but {type(model).__name__}.forward raised "
            f"{type(error).__name__}: {error}. Check the shape, the order and the dtype of the example. Integers are "
            "drawn from its range: what must be in order, such as offsets, make inside of a module around the model."
        ) from error


def cut(
    model: nn.Module, graph: Graph, plan: Plan, sliced: Mapping[str, torch.Tensor] | None = None
) -> nn.Module:
    """A copy with sliced tensors and repaired attributes; neither sizes nor values are checked yet.

    `sliced` is what `slice_state` makes of the model's state, where that was made already; the copy takes it over.
    """
    state = slice_state(state_of(model), plan) if sliced is None else sliced
    own = {
        name: value.detach() if name in plan.kept else value.detach().clone()
        for name, value in made_up(graph, plan, state).items()
    }
    small = twin(model, own)
    # Ahead of all that asks for a weight: a weight norm calls what holds its masks.
    cut_masks(small, plan.kept)
    repair_attributes(small, graph, sizes_of(graph, plan))
    hold_masks(small, {name: torch.from_numpy(mask) for name, mask in plan.masks.items()})
    earlier = getattr(model, PLAN_ATTRIBUTE, ())
    setattr(small, PLAN_ATTRIBUTE, (*earlier, plan))
    return small


def _inputs(graph: Graph, rows: int | None, device: torch.device) -> ArgsAndKwargs:
    """Random inputs on a device, the same each time."""
    args, kwargs = moved_inputs(graph.example.random(rows), device)
    return args, kwargs


def fill(small: nn.Module, graph: Graph, plan: Plan, state: Mapping[str, torch.Tensor]) -> None:
    """Put tensors of the replay into the pruned module; tied parameters stay tied, frozen ones stay frozen.

    Args:
        small: a copy of the dense network, or a network pruned by this plan already.
        graph: of the dense network.
        plan: what is removed.
        state: every tensor cut down (`slice_state`), repaired or not.
    """
    modules = dict(small.named_modules(remove_duplicate=False))
    names: dict[str, list[str]] = {}
    for alias, first in graph.aliases.items():
        names.setdefault(first, []).append(alias)
    with torch.no_grad():
        for first, value in made_up(graph, plan, state).items():
            if first in graph.aliases:
                continue
            path, _, leaf = first.rpartition(".")
            old = getattr(modules[path], leaf)
            if old.shape == value.shape:
                old.copy_(value)
                continue
            new = value.detach().clone()
            new = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            for name in [first, *names.get(first, [])]:
                path, _, leaf = name.rpartition(".")
                setattr(modules[path], leaf, new)


def verify(small: nn.Module, graph: Graph, plan: Plan, sliced: Mapping[str, torch.Tensor]) -> float:
    """Run a pruned network beside the replay on random inputs.

    Weights that are all zero (a head that is initialised so) would hide every difference before them: where there are
    any, both are run with random ones in their place.

    Args:
        small: made from the dense network by `plan`, with its weights.
        graph: of the dense network.
        plan: what was removed.
        sliced: weights of the dense network, cut down by `plan`.

    Returns:
        The largest difference, relative to the largest output.

    Raises:
        SurgeryError: they differ by more than rounding.
    """
    tried = shaken({name: tensor for name, tensor in sliced.items() if name not in graph.aliases})
    replay = Replay(graph, tried, plan, cut=True)
    zero = [name for name, tensor in tried.items() if tensor is not sliced[name]]
    own = {name: tensor for name, tensor in made_up(graph, plan, tried).items() if name in zero}

    def made(inputs: ArgsAndKwargs) -> Sequence[torch.Tensor]:
        # What it remembers of its calls is the original's.
        return answered(small, graph.written, inputs, own, untouched)

    rows = VERIFIED if graph.batched else None

    def inputs() -> ArgsAndKwargs:
        # Made anew for each run, for the network may write into them; and so is what it draws itself.
        (torch.default_generator if replay.device.type == "cpu" else torch).manual_seed(0)
        return _inputs(graph, rows, replay.device)

    gpus = [replay.device] if replay.device.type == "cuda" else []
    with torch.random.fork_rng(gpus), torch.no_grad(), plain_kernels(), mode_of(small, training=False):
        untouched = Untouched(small)  # in the mode in which it runs: to change it may do more than set flags
        expected, _ = replay.run(inputs())
        worst = largest_difference(made(inputs()), expected, rows or graph.batch)
        if not graph.batched:
            return worst
        try:
            one = made(graph.example.first_row(inputs()))
            return max(worst, largest_difference(one, [t[:1] if t.ndim else t for t in expected], 1))
        except Exception:  # noqa: BLE001 (rows meet, or the network takes no row alone)
            again = _replayed(replay, graph.example.first_row(inputs()))
        if again is None or not _alike_alone(graph, again, graph.example.first_row(inputs())):
            return worst
        return max(worst, largest_difference(made(graph.example.first_row(inputs())), again, 1))


def _alike_alone(graph: Graph, answers: Sequence[torch.Tensor], row: ArgsAndKwargs) -> bool:
    """Whether the original takes a row alone, and returns what the recorded ops do: not where it drops its axis."""
    try:
        with mode_of(graph.model, training=False):
            own = answered(graph.model, graph.written, row)
    except Exception:  # noqa: BLE001 (the user's forward may raise anything)
        return False
    return [t.shape for t in own] == [t.shape for t in answers]


def _replayed(replay: Replay, inputs: ArgsAndKwargs) -> list[torch.Tensor] | None:
    """What the recorded ops give; None where they do not take inputs of that batch size, and so promise nothing."""
    try:
        return replay.run(inputs)[0]
    except Exception:  # noqa: BLE001 (any op may refuse its arguments)
        return None
