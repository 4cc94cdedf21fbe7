"""Record one forward pass as ATen ops, below autograd, without computing anything.

Parameters are swapped for meta tensors, so the model is not touched and its size does not matter. The pass is recorded
at two batch sizes: integers that differ between them depend on the batch, and the replay can run at any.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sned.errors import ModelError
from sned.graph.build import build
from sned.graph.example import Example, Inputs, Leaf, describe, tensors_in
from sned.graph.ir import Graph
from sned.graph.merging import has_offsets, merge
from sned.graph.modules import modes_of, modules_of, put_modes
from sned.graph.provenance import Watch, functions_opened, instrument
from sned.graph.recorder import Recorder
from sned.graph.recording import BATCHES, Recorded, Recording, rows_of_one_size
from sned.graph.rescale import PRODUCTS
from sned.graph.tables import widened
from sned.graph.training import adds, alike, mode_watched
from sned.graph.untouched import Untouched

FURTHER = 5
"""A third batch size, where two do not tell how numbers follow it."""


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by name; a tensor that is tied to another comes twice, a module of two names once."""
    return {
        f"{path}.{leaf}" if path else leaf: tensor
        for path, module in modules_of(model)
        for table in (module._parameters, module._buffers)
        if table
        for leaf, tensor in table.items()
        if tensor is not None
    }


def device_of(state: Mapping[str, torch.Tensor]) -> torch.device:
    """Where the tensors of a network are; the CPU where it has none."""
    return next((tensor.device for tensor in state.values()), torch.device("cpu"))


def check_values(state: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors without values where some are needed.

    Raises:
        ModelError: one is on the meta device.
    """
    empty = next((name for name, tensor in state.items() if tensor.is_meta), None)
    if empty is not None:
        raise ModelError(
            f"Weights must have values here, but {empty!r} is on the meta device, where only shapes are known. Make "
            "the network on the CPU, or give it values: `model.to_empty(device='cpu')`, then `load_state_dict`."
        )


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold the garbage collector back: what a pass makes lives on, and searching it again and again takes long.

    And step out of inference mode, in which ops are not taken apart and no weight that is made can be trained.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        with torch.inference_mode(False):
            yield
    finally:
        if was:
            gc.enable()


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Turn off what hides structure or computes otherwise from one device to the next: the fast path of multi-head
    attention, and precisions that a forward pass chooses by `autocast`."""
    before = torch.backends.mha.get_fastpath_enabled()
    enter: Any = torch.autocast.__enter__

    def plainly(context: torch.autocast) -> Any:
        context._enabled = False
        return enter(context)

    torch.backends.mha.set_fastpath_enabled(False)
    torch.autocast.__enter__ = plainly  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def decomposed() -> Iterator[None]:
    """On real tensors, take attention and recurrent layers apart as meta tensors do."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextmanager
def mode_of(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put every module in train or eval mode, and each back into its own afterwards."""
    before = modes_of(model)
    if any(was is not training for was in before.values()):
        model.train(training)
    try:
        yield
    finally:
        put_modes(before)


def record(
    model: nn.Module,
    example: Example,
    batch: int | None,
    *,
    into: Recording | None = None,
    training: bool = False,
    device: str = "meta",
    sources: bool = True,
    untouched: AbstractContextManager[None] | None = None,
) -> Recording:
    """Run `model` once on inputs like `example`, on meta tensors, and return what it did.

    `into` is filled as the pass goes, so that it says how far the pass got when the model raises. Without `sources` the
    ops alone are written down: a pass that is held against another one need not tell where its numbers come from.
    `untouched` takes back what the pass leaves in the model, where one serves several passes; a copy that is thrown
    away needs none.

    Raises:
        Whatever the model raises.
    """
    given = state_of(model)
    twins: dict[int, torch.Tensor] = {}
    swapped = {name: twins.setdefault(id(t), _stand_in(t, device)) for name, t in given.items()}
    names: dict[int, str] = {}
    for name, tensor in swapped.items():
        names.setdefault(id(tensor), name)

    generator = torch.Generator().manual_seed(0)

    def made(leaf: Leaf) -> torch.Tensor:
        if device != "meta":
            return leaf.tensor(batch, example.batch, generator).to(device)
        return torch.empty(
            leaf.resized(batch, example.batch), dtype=getattr(torch, leaf.dtype), device=device
        )

    args, kwargs = example.build(made)
    recorder = Recorder(model, names, into or Recording())
    inputs = tuple(recorder.number(t) for t in tensors_in((args, kwargs)))
    for tensor, leaf in zip(tensors_in((args, kwargs)), example.leaves(), strict=True):
        if not getattr(torch, leaf.dtype).is_floating_point:
            recorder.values.hold(tensor, leaf.tensor(batch, example.batch, generator))
    for name, tensor in given.items():
        if not (tensor.is_floating_point() or tensor.is_meta):
            recorder.values.hold(swapped[name], tensor.detach().cpu().clone())
    with ExitStack() as stack:
        stack.enter_context(plain_kernels())
        if device != "meta":
            stack.enter_context(decomposed())
        stack.enter_context(mode_of(model, training=training))
        stack.enter_context(torch.no_grad())
        stack.enter_context(recorder.module_paths(returns=sources))
        stack.enter_context(recorder)
        stack.enter_context(Untouched(model) if untouched is None else untouched)
        if sources:
            instrument(model)
        stack.enter_context(functions_opened())
        if training:
            stack.enter_context(torch.random.fork_rng(()))
            torch.default_generator.manual_seed(0)
        else:
            stack.enter_context(mode_watched(recorder.recording))
        watch = stack.enter_context(
            Watch(
                lambda: len(recorder.recording.ops),
                recorder.known,
                recorder.values.hold,
                sources,
                dropout=not training,
            )
        )
        output = torch.func.functional_call(model, swapped, args, kwargs, tie_weights=False)
    recording = recorder.recording
    recording.inputs, recording.device = inputs, device
    recording.uses, recording.scales, recording.leaks = watch.uses, watch.scales, watch.leaks
    recording.outputs = tuple(recorder.read(t) for t in tensors_in(output))
    for number in inputs:
        recording.constants.pop(number, None)
    return recording


def _stand_in(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """What a parameter is swapped for: a tensor without values, or a copy that the pass may write to."""
    return tensor.detach().to(device) if device == "meta" else tensor.detach().to(device, copy=True)


def trace(model: nn.Module, example_inputs: Inputs) -> Graph:
    """Record what `model` does and find the groups of units that must go together; the model is not touched.

    Args:
        model: any `nn.Module`.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments. The first axis of the
            first tensor is taken for the batch. Values are not read, except the range of integers.

    Returns:
        The `Graph`: ops, shapes, groups and what is frozen; no weight values.

    Raises:
        ModelError: the model does not run on the example.

    Example:
        >>> graph = sned.trace(torchvision.models.resnet18(), torch.randn(1, 3, 224, 224))
        >>> [group.name for group in graph.groups][:2]
        ['conv1', 'layer1.0.conv1']
    """
    return trace_example(model, describe(example_inputs))


def trace_example(model: nn.Module, example: Example) -> Graph:
    """`trace`, from a description of the inputs."""
    return build(recorded(model, example))


def recorded(model: nn.Module, example: Example) -> Recorded:
    """What `model` does on inputs like `example`.

    Raises:
        ModelError: the model does not run on them.
    """
    check_network(model)
    recording, batched, device = _both(model, example)
    if not recording.outputs:
        raise ModelError(
            f"The model must return tensors, alone or in tuples, lists, dicts or attributes of an object, but none was "
            f"found in what {type(model).__name__}.forward returns. What it returns would not be protected: return the "
            "tensors themselves."
        )
    _check_products(recording)
    example = widened(example, recording)
    trained = _in_training(model, example, recording, BATCHES[0] if batched else None, device)
    for calls in recording.asked.values():
        calls.clear()  # of tensors, which may have values
    return Recorded(model, example, recording, batched, trained, device)


def _check_products(recording: Recording) -> None:
    """Refuse dtypes that clash: without values, nothing else does."""
    for op in recording.ops:
        if op.name in PRODUCTS:
            one, other = (recording.tensors[op.args[place].id].dtype for place in PRODUCTS[op.name])
            if one != other:
                raise ModelError(
                    f"The factors of a product must have one dtype, but {op.target} in module {op.module!r} gets {one} "
                    f"and {other}. Check the dtype of the example. A trace turns `autocast` off: a forward pass that "
                    "uses it must leave all casts to it, such as `x.to(torch.bfloat16)`."
                )


def check_network(model: Any) -> None:
    """Refuse what is given in the place of a model.

    Raises:
        ModelError: it is no network.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"`model` must be an `nn.Module` or a Keras 3 model, got {_told(model)}. Call the function that makes it, "
            "or load a state dict into the network that it is of."
        )


def _told(value: Any) -> str:
    """What was given in the place of a model."""
    return (
        f"the class {value.__name__}"
        if isinstance(value, type)
        else f"an object of type {type(value).__name__}"
    )


def _in_training(
    model: nn.Module, example: Example, main: Recording, batch: int | None, device: str
) -> Recording | None:
    """The pass in train mode, where it does more than the one in eval mode: heads may run that evaluation leaves out.

    None where it does not, or does not run as it is.
    """
    left_out = any(n not in main.parameters and t.is_floating_point() for n, t in state_of(model).items())
    if not left_out and _noise_alone(main.asked):
        return None
    trained = None
    for place in _devices(model) if device == "meta" else (device,):
        try:
            trained = record(model, example, batch, training=True, device=place)
        except Exception as error:  # noqa: BLE001 (the user's forward may ask for targets, and raise anything)
            if "meta" in str(error).lower():  # values are read, or met by tensors that have some
                continue
        break
    return trained if trained is not None and adds(trained, main, batch or example.batch) else None


def _noise_alone(asked: Mapping[nn.Module, Sequence[tuple[Any, ...]]]) -> bool:
    """Whether modules that ask for their mode have no weights, and do nothing in train mode but draw random factors:
    told by one of each kind beside the others, which is far quicker than a pass through the network."""
    kinds = {
        alike(module, given): (module, given) for module, calls in asked.items() for given in calls or [()]
    }
    if not kinds:
        return True
    modules, given = zip(*kinds.values(), strict=True)
    if any(m._parameters or m._buffers or m._modules for m in modules) or not all(map(tensors_in, given)):
        return False
    try:
        example, beside = describe(given), Beside(modules)
        main, trained = (record(beside, example, None, training=mode) for mode in (False, True))
    except Exception:  # noqa: BLE001 (the user's forward may raise anything)
        return False
    return not adds(trained, main, example.batch)


class Beside(nn.ModuleList):
    """Modules, each of which is called with what it is given."""

    def forward(self, *given: tuple[Any, ...]) -> list[Any]:
        return [module(*args) for module, args in zip(self, given, strict=True)]


def _devices(model: nn.Module) -> tuple[str, str]:
    """Where to record: without values, then with them."""
    home = device_of(state_of(model))
    return "meta", "cpu" if home.type == "meta" else str(home)


def _both(model: nn.Module, example: Example) -> tuple[Recording, bool, str]:
    """The pass at two batch sizes, merged; or, where the model takes no other batch size, or answers once for all rows
    together, at the example's own.

    A model that reads values (`.item()`, routing, a mask that is asked whether it is all ones) cannot run on meta
    tensors; then it runs on real ones. Returns the recording, whether any batch size will do, and the device used.
    """
    first_error: Exception | None = None
    devices = _devices(model)
    with mode_of(model, training=False):
        untouched = Untouched(model)
    for device in devices:
        for batches in (BATCHES, (None,)):
            try:
                recordings = [
                    record(
                        model, example, batch, device=device, sources=batch == batches[0], untouched=untouched
                    )
                    for batch in batches
                ]
            except Exception as error:  # noqa: BLE001 (the user's forward may raise anything)
                first_error = error if device == devices[-1] or first_error is None else first_error
                continue
            if len(recordings) == 1:
                (only,) = recordings
                return replace(only, rows=rows_of_one_size(only, example.batch)), False, device
            first, second = recordings
            merged = merge(first, second)
            if merged is not None and any(merged.rows) and _holds(merged, first, model, example, device):
                return merged, True, device
    shapes = ", ".join(str(leaf.shape) for leaf in example.leaves())
    raise ModelError(
        f"The model must run on the example inputs, but {type(model).__name__}.forward failed on shapes {shapes}: "
        f"{type(first_error).__name__}: {first_error}. Check the shape, the order and the dtype of the example."
    ) from first_error


def _holds(merged: Recording, first: Recording, model: nn.Module, example: Example, device: str) -> bool:
    """Whether numbers that follow the batch do so at a further size too: those with an offset may be halves or squares
    of it."""
    if not has_offsets(merged):
        return True
    try:
        more = record(model, example, FURTHER, device=device, sources=False)
    except Exception:  # noqa: BLE001 (the user's forward may raise anything)
        return False
    again = merge(first, more, (BATCHES[0], FURTHER))
    return again is not None and again.ops == merged.ops
