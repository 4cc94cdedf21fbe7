"""A network as `torch.export` sees it: recorded on a copy, in evaluation mode, its outputs a flat tuple."""

import functools
import inspect
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from sned.errors import ExampleError, ExportError, ModelError
from sned.export.steps import shapes_of_one_step
from sned.export.structure import at_batch, batched
from sned.graph.example import Inputs, arguments, batch_in, called, named_tensors, tensors_in
from sned.surgery.keras import is_keras
from sned.surgery.masks import burn_in
from sned.surgery.twin import copied


@dataclass(frozen=True)
class Captured:
    """What `torch.export` recorded.

    Attributes:
        program: the recorded forward pass; its module takes `example` and gives a flat tuple.
        inputs: names of the tensors that enter, in the order of the model's.
        outputs: names of the tensors that come out.
        example: the tensors it was recorded with.
        module: what was recorded, for converters that record by themselves.
        dynamic_batch: whether the batch was left open.
        batched: of each tensor that enters whether its first axis is the batch.
    """

    program: torch.export.ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: tuple[Tensor, ...]
    module: nn.Module
    dynamic_batch: bool = False
    batched: tuple[bool, ...] = ()

    @property
    def attends(self) -> bool:
        """Whether the network has attention: products of activations, with a softmax between them."""
        names = " ".join(str(node.target) for node in self.program.graph.nodes if node.op == "call_function")
        return "attention" in names or ("softmax" in names and ("matmul" in names or "bmm" in names))

    @property
    def projects(self) -> bool:
        """Whether an LSTM in it projects its state, which the operators of most runtimes do not."""
        lstms = self.program.graph.find_nodes(op="call_function", target=torch.ops.aten.lstm.input)
        states = [[state.meta["val"].shape for state in node.args[1]] for node in lstms]
        return any(hidden != cell for hidden, cell in states)

    def positional(self, change: Callable[[int, Tensor], Tensor] = lambda place, tensor: tensor) -> nn.Module:
        """The forward pass as a module that takes its tensors one after the other and gives a flat tuple.

        Args:
            change: what becomes of each tensor that enters, given its place (a transposition, a cast).
        """
        return _Positional(self.module, self.program.example_inputs, change)

    def renamed(self, inputs: Iterable[str], outputs: Iterable[str]) -> "Captured":
        """The same pass, with other names of what enters and leaves, apart from those inside."""
        inside = {node.name for node in self.program.graph.nodes if node.op != "output"} - {*self.inputs}
        names = _distinct(inputs, inside)
        return replace(self, inputs=names, outputs=_distinct(outputs, {*names, *inside}))

    def origin(self, error: BaseException) -> str:
        """Which operation of which module a converter failed on, going by the texts of its exceptions.

        Returns:
            "'aten.linalg_eig.default' in module 'stages.1'", or empty where no operation is named.
        """
        told = " ".join(str(link) for link in _chain(error))
        with quiet():
            nodes = [*self.program.graph.nodes, *self.program.run_decompositions().graph.nodes]
        called = [node for node in nodes if node.op == "call_function"]
        for names in (_full_names, _bare_names):
            # What was called at a line that is told first, then the longest name: "add" is in many words.
            for node in sorted(called, key=lambda node: (not _told(node, told), -len(_base(node)))):
                # "mean:0" is a tensor.
                if any(
                    re.search(rf"(?<![a-z]){re.escape(name)}(?![a-z_]|:\d)", told) for name in names(node)
                ):
                    module = scope(node)
                    return f"'{node.target}'" + (f" in module '{module}'" if module else "")
        return ""


class _Positional(nn.Module):
    def __init__(self, module: nn.Module, example: Any, change: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = module
        self._leaves, self._nest = pytree.tree_flatten(example)
        self._change = change
        self.eval()

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The recorded outputs."""
        changed = iter([self._change(place, tensor) for place, tensor in enumerate(given)])
        leaves = [next(changed) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._nest)
        outputs: tuple[Tensor, ...] = self.model(*args, **kwargs)
        return outputs


class Subject:
    """A copy of a model on the CPU, in evaluation mode, that returns a flat tuple of tensors.

    The user's model is not touched: neither its modes, nor what its forward pass may write on itself. The
    forward keeps its signature, so that the exported inputs keep their names.

    Args:
        model: any module.
        halves: compute in 16-bit floats between inputs and outputs of 32.
    """

    def __init__(self, model: nn.Module, *, halves: bool = False) -> None:
        self.module = burn_in(copied(model)).cpu().eval()
        if halves:
            self.module.half()
        self.outputs: list[str] = []
        self._entered: list[str] = []
        original = self.module.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
            if halves:
                args, kwargs = pytree.tree_map(_narrow, (args, kwargs))
            found = list(named_tensors(original(*args, **kwargs)))
            self.outputs = [name for name, _ in found]
            made = (_widen(tensor) if halves else tensor for _, tensor in found)
            return tuple(_apart(made, tensors_in((args, kwargs))))

        self.module.forward = forward
        for name, module in self.module.named_modules():
            module.register_forward_pre_hook(functools.partial(self._enter, name))
            module.register_forward_hook(self._leave)

    def _enter(self, name: str, module: nn.Module, args: object) -> None:
        if not name:  # a pass that failed half-way leaves its names behind
            self._entered.clear()
        self._entered.append(name)

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        self._entered.pop()

    @property
    def where(self) -> str:
        """The module that a failed pass was in, as words; empty for the model itself."""
        return f" in module '{self._entered[-1]}'" if self._entered and self._entered[-1] else ""

    def run(self, example: Inputs) -> tuple[Tensor, ...]:
        """Run the forward pass without gradients.

        Raises:
            ModelError: it failed; the text says in which module, and why.
        """
        try:
            with torch.no_grad():
                outputs: tuple[Tensor, ...] = called(self.module, pytree.tree_map(_to_cpu, example))
        except Exception as error:
            raise ModelError(
                f"The model does not run on inputs of shape {shapes(example)}: "
                f"{type(error).__name__}{self.where}: {first_sentence(error)} "
                "Give example inputs that the model takes."
            ) from error
        if not outputs:
            raise ModelError("The model returns no tensor, so there is nothing to export. Return a tensor.")
        return outputs

    def capture(self, example: Inputs, *, dynamic_batch: bool) -> Captured:
        """Record the forward pass as an `ExportedProgram`.

        Args:
            example: what the model is called with.
            dynamic_batch: leave the size of the batch open; tensors whose first axis is as long as the first
                tensor's share it.

        Raises:
            ExportError: `torch.export` cannot follow the forward pass; the text names the module.
        """
        # A batch of 1 is taken as a constant by torch.export, whatever it is told.
        which = batched(example)
        traced = at_batch(example, max(2, batch_in(example)), which) if dynamic_batch else example
        args, kwargs = arguments(pytree.tree_map(_to_cpu, traced))
        dynamic = self._dynamic_shapes(args, kwargs, which) if dynamic_batch else None
        try:
            with quiet(), torch.no_grad(), shapes_of_one_step():
                program = torch.export.export(self.module, args, kwargs, dynamic_shapes=dynamic)
        except Exception as error:
            raise ExportError(
                f"torch.export cannot follow the model{self.where}: {_reason(error)}"
            ) from error
        given = tuple(tensors_in((args, kwargs)))
        names = tuple(_tensor_inputs(program))
        captured = Captured(
            program, names, _distinct(self.outputs, names), given, self.module, dynamic_batch, which
        )
        network: Any = self.module
        if not is_keras(network):
            return captured
        return captured.renamed(network.input_names(len(names)), network.output_names(captured.outputs))

    def _dynamic_shapes(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], which: Iterable[bool]
    ) -> dict[str, Any]:
        batch, told = torch.export.Dim("batch"), iter(which)

        def axes(leaf: Any) -> dict[int, Any] | None:
            if not isinstance(leaf, Tensor):
                return None
            return {0: batch} if next(told) else {}

        args, kwargs = pytree.tree_map(axes, (args, kwargs))
        try:
            bound = inspect.signature(self.module.forward).bind(*args, **kwargs)
        except TypeError as error:
            reason = first_sentence(error)
            raise ExampleError(f"The example inputs are not the model's arguments: {reason}") from error
        return dict(bound.arguments)


def in_kind(model: nn.Module, kind: torch.dtype, coarse: frozenset[torch.dtype]) -> nn.Module:
    """The network with floats of one kind in place of coarse ones, which few runtimes compute in; itself where it has
    none.

    Inputs and casts in its forward pass go to that kind as well.
    """
    if not _held(model, coarse):
        return model
    plain = copied(model)
    for tensor in _held(plain, coarse):
        tensor.data = tensor.data.to(kind)
    plain.register_forward_pre_hook(functools.partial(_begin_casts, kind, coarse), with_kwargs=True)
    plain.register_forward_hook(_end_casts, always_call=True)
    return plain


def _held(model: nn.Module, kinds: frozenset[torch.dtype]) -> list[Tensor]:
    held = chain(model.parameters(), model.buffers())
    return [tensor for tensor in held if tensor.dtype in kinds]


class _Casts(TorchFunctionMode):
    """One kind of floats wherever a pass asks for coarse ones."""

    def __init__(self, kind: torch.dtype, coarse: frozenset[torch.dtype]) -> None:
        super().__init__()
        self.kind, self.coarse = kind, coarse

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The op, with another type asked for."""
        del types
        if _CASTS.get(func) in self.coarse:
            return args[0].to(self.kind)
        args, kwargs = pytree.tree_map(self.named, (args, kwargs or {}))
        return func(*args, **kwargs)

    def named(self, leaf: Any) -> Any:
        """A type in an op's arguments."""
        return self.kind if isinstance(leaf, torch.dtype) and leaf in self.coarse else leaf


_CASTS = {torch.Tensor.bfloat16: torch.bfloat16, torch.Tensor.half: torch.float16}


def _begin_casts(
    kind: torch.dtype, coarse: frozenset[torch.dtype], module: nn.Module, args: Any, kwargs: Any
) -> tuple[Any, Any]:
    del module

    def cast(leaf: Any) -> Any:
        return leaf.to(kind) if isinstance(leaf, Tensor) and leaf.dtype in coarse else leaf

    given: tuple[Any, Any] = pytree.tree_map(cast, (args, kwargs))
    _Casts(kind, coarse).__enter__()  # type: ignore[no-untyped-call]
    return given


def _end_casts(module: nn.Module, _: object, __: object) -> None:
    del module
    # Takes the topmost one off.
    TorchFunctionMode().__exit__(None, None, None)  # type: ignore[no-untyped-call]


def scope(node: torch.fx.Node) -> str:
    """The innermost module that a node came from; empty for the model itself."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return re.sub(r"^L\['self'\]\.?", "", str(paths[-1])) if paths else ""


def _told(node: torch.fx.Node, text: str) -> bool:
    """Whether a text has one of the lines, "FILE:LINE", by which a node was called."""
    lines = re.findall(r'File "(.+?)", line (\d+)', node.meta.get("stack_trace") or "")
    return any(re.search(rf"{re.escape(file)}:{line}\b", text) for file, line in lines)


def _base(node: torch.fx.Node) -> str:
    """The bare name of an operation: "linalg_eig" of `aten.linalg_eig.default`."""
    parts = str(node.target).split(".")
    return parts[1].strip("_") if len(parts) > 1 else parts[0]


def _full_names(node: torch.fx.Node) -> tuple[str, ...]:
    """The name of an operation as no other word is written: "aten.gru.input", "aten::gru", "gru.input"."""
    parts = str(node.target).split(".")
    return (str(node.target), "::".join(parts[:2]), ".".join(parts[1:])) if len(parts) > 2 else ()


def _bare_names(node: torch.fx.Node) -> tuple[str, ...]:
    return (_base(node),) if len(_base(node)) > 3 else ()


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _tensor_inputs(program: torch.export.ExportedProgram) -> Iterator[str]:
    """Names of the tensors among a program's inputs; constants of the call are left out."""
    entering = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in entering and isinstance(node.meta.get("val"), Tensor):
            yield node.name


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's warnings, logs and prints back; what matters comes as an exception."""
    before = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        redirect_stdout(StringIO()),
        redirect_stderr(StringIO()),
        _native_errors_hidden(),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def _native_errors_hidden() -> Iterator[None]:
    """What libraries in C++ write to file descriptor 2 goes nowhere: most of it is said on every use."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def first_sentence(error: BaseException) -> str:
    """The first line of what an exception says, as a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


def shapes(example: Inputs) -> str:
    """The shapes of example inputs, for a message: "[1, 3, 32, 32]"."""
    return ", ".join(str(list(tensor.shape)) for tensor in tensors_in(example))


def _reason(error: BaseException) -> str:
    """What torch.export could not do, with the line of the user's forward that it quotes, if it does."""
    if "Constraints violated" in str(error):
        return "its forward pass fixes the size of the batch."
    quoted = re.search(r"line (\d+), in (\w+)\n\s+(.+)", str(error))
    if quoted is None:
        return first_sentence(error)
    return (
        f"{first_sentence(error)} It happened in line {quoted[1]}, in {quoted[2]}: `{quoted[3].strip()}`. "
        "Rewrite that line without decisions on the values of tensors."
    )


def _distinct(names: Iterable[str], taken: Iterable[str]) -> tuple[str, ...]:
    """Names that an ONNX file takes, each once, and none of those that are taken."""
    distinct: list[str] = []
    for name in (re.sub(r"\W", "_", name) for name in names):
        numbered = (f"{name}_{number}" for number in count(2))
        distinct.append(next(one for one in chain([name], numbered) if one not in {*taken, *distinct}))
    return tuple(distinct)


def _apart(outputs: Iterable[Tensor], inputs: Iterable[Tensor]) -> Iterator[Tensor]:
    """Outputs as tensors of their own: converters fail on one that is an input, or that is returned twice."""
    seen = {id(tensor) for tensor in inputs}
    for output in outputs:
        yield output.clone() if id(output) in seen else output
        seen.add(id(output))


def _to_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf


def _narrow(leaf: Any) -> Any:
    return leaf.half() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor
