"""ExecuTorch: lowered to XNNPACK, quantised by XNNPACK's own quantiser, run by ExecuTorch's Python binding."""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from sned.errors import ExportError
from sned.export.capture import Captured, first_sentence, quiet
from sned.export.parity import Array
from sned.export.target import DYNAMIC, FP16, FP32, INT8, NONE_COARSER, Order, Target

DEFAULT = "forward"
"""What the runtime calls the only method of a file."""

_ALIGNED = 16
"""Weights begin at multiples of so many bytes, as XNNPACK wants them; at those of 128 if nothing is said."""

_NAME_BYTES = 6
"""Of the digest that names a constant, two digits each."""


def _write(levels: Mapping[str, Captured], order: Order) -> tuple[str, ...]:
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower

    try:
        with quiet(), torch.no_grad():
            programs = {name or DEFAULT: _coarser(name, level, order) for name, level in levels.items()}
            with _short_names():
                lowered = to_edge_transform_and_lower(programs, partitioner=[XnnpackPartitioner()])
            laid = lowered.to_executorch(ExecutorchBackendConfig(segment_alignment=_ALIGNED))
            order.path.write_bytes(laid.buffer)
    except Exception as error:
        origin = next(filter(None, (level.origin(error) for level in levels.values())), "")
        reason = f"{origin} has no ExecuTorch kernel." if origin else first_sentence(error)
        raise ExportError(
            f"The model cannot be written for ExecuTorch: {reason} "
            "Replace that operation, or export the part of the model before it."
        ) from error
    nodes = [node for program in programs.values() for node in program.graph.nodes]
    coarse = any("dequantize" in str(node.target) for node in nodes) or order.precision not in (INT8, DYNAMIC)
    remark = _REMARKS.get(order.precision, ()) if coarse else (NONE_COARSER,)
    return (*(_left_out(lowered, name or DEFAULT) for name in levels), *remark)


@contextmanager
def _short_names() -> Iterator[None]:
    """Let XNNPACK name each constant by a digest of 12 digits instead of 64.

    A name stands in the file twice: in a small network of 8 bits that is a tenth of it. Different constants of one name
    are refused where they are put together.
    """
    from executorch.backends.xnnpack.operators import node_visitor

    usual = node_visitor.hashlib
    node_visitor.hashlib = SimpleNamespace(sha256=partial(hashlib.blake2b, digest_size=_NAME_BYTES))
    try:
        yield
    finally:
        node_visitor.hashlib = usual


_REMARKS: Mapping[str, tuple[str, ...]] = {
    FP16: ("XNNPACK keeps the weights of convolutions in 32 bits: only linear layers get smaller.",),
    DYNAMIC: ("Convolutions stay in 32 bits: use 'int8' for them.",),
}


def _left_out(lowered: Any, method: str) -> str:
    """What XNNPACK did not take, and the portable kernels, which are slow, do."""
    calls = [node for node in lowered.exported_program(method).graph.nodes if node.op == "call_function"]
    names = [str(getattr(node.target, "_name", node.target)) for node in calls]
    own = sorted({name.rpartition("::")[2] for name in names if "::" in name})
    where = f" in '{method}'" if method != DEFAULT else ""
    return f"XNNPACK runs all of it{where}." if not own else f"Portable kernels run{where}: {', '.join(own)}."


def _coarser(name: str, level: Captured, order: Order) -> torch.export.ExportedProgram:
    """The recorded pass at the precision asked for."""
    lacking = next((str(n.target) for n in level.program.graph.nodes if _VOLUME.search(str(n.target))), None)
    if lacking is not None:  # found when the file is run, by a number
        raise NotImplementedError(lacking)
    program = torch.export.export(level.positional(), level.example)
    graph: Any = program.module()
    if order.precision in (FP32, FP16):
        if _plain_weights(graph):
            program = torch.export.export(graph, level.example)
        _spell_out(program.graph_module)
        return program
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    class Quantizer(XNNPACKQuantizer):  # type: ignore[misc]
        """Leaves whole numbers whole: its own would make floats of indices, of `arange(n) + 1` say."""

        def transform_for_annotation(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            whole = {node: node.args for node in model.graph.nodes if _is_whole(node.meta.get("val"))}
            made: torch.fx.GraphModule = super().transform_for_annotation(model)
            for node, arguments in whole.items():
                node.args = arguments
            made.graph.eliminate_dead_code()
            made.recompile()
            return made

    dynamic = order.precision == DYNAMIC
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = Quantizer()
    if dynamic:  # convolutions keep their weights, and lost their answers behind what XNNPACK does not take
        quantizer.set_operator_type(torch.ops.aten.linear.default, config)
    else:
        quantizer.set_global(config)
    _plain_weights(graph)
    _spell_out(graph)
    prepared = prepare_pt2e(graph, quantizer)
    for row in order.samples(name) or [[tensor.numpy() for tensor in level.example]]:
        prepared(*(torch.from_numpy(np.asarray(array, order="C")) for array in row))
    return torch.export.export(convert_pt2e(prepared), level.example)


def _plain_weights(graph: Any) -> bool:
    """Weights that are worked out become parameters, and each op gets its own; whether there were such.

    Lowering folds norms into weights and transposes them where they lie, and the quantiser takes what several ops read
    for an activation. Equal numbers lie in the file once.
    """
    from torchao.quantization.pt2e.constant_fold import constant_fold

    before = len(graph.graph.nodes)
    constant_fold(graph, _is_weight)
    changed = len(graph.graph.nodes) != before
    for node in list(graph.graph.find_nodes(op="get_attr")):
        numbers = operator.attrgetter(node.target)(graph)
        stays = isinstance(numbers, nn.Parameter) or not _is_weight(node)
        for place, user in enumerate(list(node.users)[stays:]):
            name = f"{node.name}_own_{place}"
            setattr(graph, name, nn.Parameter(numbers.detach().clone(), requires_grad=False))
            with graph.graph.inserting_before(user):
                own = graph.graph.get_attr(name)
            own.meta = dict(node.meta)
            user.replace_input_with(node, own)
            changed = True
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return changed


def _spell_out(graph: torch.fx.GraphModule) -> None:
    """What XNNPACK takes for what it does not: slices for a split into parts, a mean that keeps its axes, axes that are
    turned by a copy, lest a reshape behind them makes one, in floats."""
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        with graph.graph.inserting_before(node):
            if node.target in (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default):
                _sliced(node)
            elif node.target == aten.mean.dim and node.args[2:] != (True,):
                _kept(node)
            elif node.target in (aten.transpose.int, aten.permute.default):
                _copied(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _sliced(split: Any) -> None:
    axis = split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)
    ends = list(accumulate(part.shape[axis] for part in split.meta["val"]))
    for taken in list(split.users):
        end = ends[taken.args[1]]
        bounds = (axis, end - taken.meta["val"].shape[axis], end)
        _instead(taken, split.graph.call_function(torch.ops.aten.slice.Tensor, (split.args[0], *bounds)))


def _kept(mean: Any) -> None:
    given, axes = mean.args[:2]
    kept = mean.graph.call_function(mean.target, (given, axes, True), mean.kwargs)
    kept.meta["val"] = given.meta["val"].mean(axes, keepdim=True)
    shape = list(mean.meta["val"].shape)
    _instead(mean, mean.graph.call_function(torch.ops.aten.view.default, (kept, shape)))


def _copied(turned: Any) -> None:
    given, *how = turned.args
    order = list(turned.target(torch.empty(*range(turned.meta["val"].ndim), device="meta"), *how).shape)
    _instead(turned, turned.graph.call_function(torch.ops.aten.permute_copy.default, (given, order)))


def _instead(old: torch.fx.Node, new: torch.fx.Node) -> None:
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)


def _is_weight(node: torch.fx.Node) -> bool:
    """Whether a convolution or a linear layer reads a tensor as its weights."""
    return any(_READS_WEIGHTS.search(str(user.target)) and user.args[1] == node for user in node.users)


_VOLUME = re.compile(r"\bconv(_transpose)?3d\.")
"""Convolutions along three axes: neither XNNPACK nor the portable kernels have them."""

_READS_WEIGHTS = re.compile(r"\b(conv\w*|linear)\.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_floating_point()


class ExecuTorchSession:
    """A method of a file in ExecuTorch's runtime."""

    def __init__(self, path: Path, level: str, threads: int) -> None:
        with quiet():
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime, Verification

        self.data = path.read_bytes()  # the runtime points into it
        try:
            with quiet():
                portable_lib._unsafe_reset_threadpool(threads)
                self.program = Runtime.get().load_program(
                    self.data, verification=Verification.InternalConsistency
                )
                self.method = self.program.load_method(level or DEFAULT)
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"ExecuTorch cannot open the exported file: {first_sentence(error)}") from error

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run once; raises `ExportError` with what the runtime says."""
        try:
            got = self.method.execute([torch.from_numpy(np.asarray(array, order="C")) for array in inputs])
        except RuntimeError as error:
            raise ExportError(f"ExecuTorch cannot run the exported file: {first_sentence(error)}") from error
        return [output.numpy().copy() for output in got]


TARGET = Target(
    name="executorch",
    title="ExecuTorch",
    suffix=".pte",
    modules=("executorch", "torchao"),
    extra="executorch",
    precisions=(FP32, FP16, INT8, DYNAMIC),
    write=_write,
    read=ExecuTorchSession,
    levels="methods",
    halves=True,
)
