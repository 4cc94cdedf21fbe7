"""What a command works on: a model, its weights, example inputs, calibration batches, the user's measure."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sned.cli.keras_files import (
    SUFFIXES,
    drawn,
    keras_example,
    keras_inputs,
    keras_model,
    with_keras_weights,
)
from sned.cli.objects import called, load_object
from sned.cli.zoo import LIBRARIES, from_zoo
from sned.errors import CheckpointError, ExampleError, ModelError, NotFoundError, UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Under which keys training scripts put the weights beside the optimizer's state."""


def load_model(spec: str, weights: Path | None = None) -> "nn.Module":
    """Build the model that a specification names, and fill in its weights.

    Args:
        spec: `path/to/file.py:make_model`, `package.module:factory`, `torchvision:NAME` or `timm:NAME`;
            the object is a model, its class, or a function that gives one; or a Keras model's `file.keras` or `.h5`.
        weights: a `.safetensors` file (one that sned saved cuts the model first), or a state dict saved by
            PyTorch.

    Raises:
        NotFoundError: something that was named is not there.
        ModelError: the object is no model.
        CheckpointError: the weights do not fit.
    """
    library, _, name = spec.partition(":")
    if Path(spec).suffix in SUFFIXES:
        model: nn.Module = keras_model(Path(spec))
    else:
        model = from_zoo(library, name) if library in LIBRARIES else _own_model(spec)
    return model if weights is None else _with_weights(model, weights)


def load_example(spec: str | None, model: Any = None) -> Any:
    """Read example inputs: a shape such as `1,3,32,32`, or what `file.py:example` names; None where the model, one of
    Keras, knows its inputs.

    Raises:
        ExampleError: the text is neither, or there is none and the model does not know.
        NotFoundError: something that was named is not there.
    """
    if spec is not None and ":" in spec:
        return called(load_object(spec, what="example"), spec=spec)
    if spec is None:
        if (known := keras_inputs(model)) is None:
            raise ExampleError(
                "sned must know what the model is called with. Give `--example` a shape with its batch, such as "
                "'1,3,32,32', or 'file.py:example'."
            )
        return keras_example(known)
    sizes = [size.strip() for size in spec.split(",")]
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ExampleError(
            f"Give the example as a shape with its batch, such as '1,3,32,32', or as 'file.py:example' for "
            f"anything else (token ids, several inputs), got '{spec}'."
        )
    shape = [int(size) for size in sizes]
    if (dtype := getattr(keras_inputs(model), "dtype", "float32")) != "float32":
        return drawn(shape, dtype)
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def load_batches(spec: str) -> Iterable[Any]:
    """Read calibration batches, `file.py:batches`: an iterable of inputs, or a function that gives one.

    Raises:
        UserError: the object cannot be iterated over.
    """
    batches = called(load_object(spec, what="batches"), spec=spec)
    try:
        iter(batches)
    except TypeError as error:
        raise UserError(
            f"'{spec}' must give batches one after the other, each as the model is called with, "
            f"got {type(batches).__name__}. Give a list, a DataLoader or a generator function."
        ) from error
    found: Iterable[Any] = batches
    return found


def load_evaluate(spec: str) -> "Callable[[nn.Module], float]":
    """Read the user's measure of a model, `file.py:accuracy`: a function of it, higher is better.

    Raises:
        UserError: the object cannot be called.
    """
    evaluate = load_object(spec, what="accuracy")
    if not callable(evaluate):
        raise UserError(
            f"'{spec}' must be a function that takes the model and returns a number, "
            f"got {type(evaluate).__name__}."
        )
    found: Callable[[nn.Module], float] = evaluate
    return found


def _own_model(spec: str) -> "nn.Module":
    from torch import nn

    from sned.surgery.keras import is_keras
    from sned.surgery.keras.backend import choose_backend
    from sned.surgery.twin import copied

    choose_backend()
    found = load_object(spec, what="model")
    ready = isinstance(found, nn.Module) or is_keras(found)
    model: Any = found if ready else called(found, spec=spec)
    if not (isinstance(model, nn.Module) or is_keras(model)):
        raise ModelError(
            f"'{spec}' must be a model (torch.nn.Module or keras.Model) or a function that returns one, "
            f"got {type(model).__name__}."
        )
    # A network that the file itself made is one object however often it is named, and is filled with weights.
    made: nn.Module = copied(model) if isinstance(found, nn.Module) else model
    return made


def _with_weights(model: "nn.Module", path: Path) -> "nn.Module":
    if not path.is_file():
        raise NotFoundError(f"There is no file '{path}'. Give the file that holds the weights.")
    from sned.surgery.keras import is_keras

    if is_keras(model):
        filled: nn.Module = with_keras_weights(model, path)
        return filled
    if path.suffix == ".safetensors":
        if _is_ours(path):
            from sned.surgery import load

            loaded: nn.Module = load(model, path)
            return loaded
        state = _from_safetensors(path)
    else:
        state = _from_pickle(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights in '{path}' are not those of this model: {_shortened(error)}"
        ) from error
    return model


def _is_ours(path: Path) -> bool:
    """Whether sned saved the file, so that it holds the structure too."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            return str((opened.metadata() or {}).get("format", "")).startswith("sned ")
    except SafetensorError as error:
        raise CheckpointError(f"'{path}' is not a whole safetensors file: {error}. Copy it again.") from error


def _from_safetensors(path: Path) -> "dict[str, Tensor]":
    from safetensors.torch import load_file

    return dict(load_file(path))


def _from_pickle(path: Path) -> "dict[str, Tensor]":
    import pickle

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"'{path}' is not a state dict that can be read without running code: "
            f"{str(error).splitlines()[0]} "
            "Save `model.state_dict()` with torch.save or safetensors."
        ) from error
    return _unwrapped(loaded, path)


def _unwrapped(loaded: Any, path: Path) -> "dict[str, Tensor]":
    """The weights alone, without what training scripts put around them, or DataParallel before names."""
    inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded, Mapping) and key in loaded), loaded)
    if not isinstance(inner, Mapping):
        raise CheckpointError(
            f"'{path}' must hold a state dict, got {type(inner).__name__}. Save `model.state_dict()`."
        )
    parallel = bool(inner) and all(str(name).startswith("module.") for name in inner)
    return {
        str(name).removeprefix("module.") if parallel else str(name): value for name, value in inner.items()
    }


def _shortened(error: RuntimeError, lines: int = 3) -> str:
    """The first few of what can be hundreds of names."""
    told = [" ".join(line.split()) for line in str(error).splitlines()[1 : lines + 1]]
    return " ".join(line if len(line) < 200 else f"{line[:200]} …" for line in told)
