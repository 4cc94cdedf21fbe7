"""Hugging Face Accelerate, set up: one process or several, CPU or GPU, and the precision of the forward pass."""

from __future__ import annotations

import atexit
from importlib import import_module
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from sned.errors import NotFoundError, UserError
from sned.training.data import Place

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(precision: str = "auto", device: str | torch.device | None = None) -> Accelerator:
    """An accelerator for this process.

    Args:
        precision: "auto" is bf16 on a GPU that has it, fp16 on another GPU, float32 on a CPU.
        device: "cpu" keeps off a GPU that is there; by default the GPU of this process where there is one.

    Raises:
        NotFoundError: Accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise NotFoundError("Accelerate is not installed: run `pip install 'sned[finetune]'`.") from error
    # The state is one for the process; without this, a second run could not have another precision.
    AcceleratorState._reset_state()
    on_cpu = not torch.cuda.is_available() or (device is not None and torch.device(device).type == "cpu")
    chosen = _auto(on_cpu) if precision == "auto" else precision
    joined = _joined()
    if not joined and dist.is_available():
        # Defaults in this module name the group of the moment when it is first imported, and so would hold it for
        # good: its threads would outlive `destroy_process_group`, and now and then abort the process as it ends.
        import_module("torch.distributed.nn.functional")
    try:
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=chosen)
    except ValueError as error:
        raise UserError(
            f"`precision` {precision!r} cannot be had on this device: {error}. Use 'no'."
        ) from error
    if _joined() and not joined:
        atexit.register(_leave)
    return accelerator


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _leave() -> None:
    if _joined():
        dist.destroy_process_group()


def _auto(on_cpu: bool) -> str:
    if on_cpu:
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def place_of(accelerator: Accelerator) -> Place:
    """Where this process computes, and its share of the data."""
    return Place(accelerator.device, accelerator.process_index, accelerator.num_processes)
