"""Torch-Pruning on the same network, set up as its examples do: seconds, and whether the result still runs.

As in its scripts for torchvision, timm and transformers: L2 magnitude of groups, the same ratio everywhere,
channels rounded to a multiple of 8, the last layers named as ignored, the heads of every attention named and
their counts repaired afterwards, and timm's attention patched so that it does not reshape to the old width.

Reference: Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.zoo import Network
from sned.graph.example import arguments, tensors_in

_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads")
_PROJECTIONS = (
    ("qkv",),
    ("qkv_proj",),
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q", "k", "v"),
)


@dataclass
class PeerRecord:
    """What the peer made of a network. It passes when the pruned network runs with the original's shapes."""

    peer_passes: bool = False
    peer_error: str = ""
    peer_build_s: float = float("nan")
    peer_prune_s: float = float("nan")
    peer_left: float = float("nan")


def peer(network: Network, record: PeerRecord, *, fraction: float = 0.5, seed: int = 0) -> None:
    """Fill `record` in as far as Torch-Pruning gets. Raises whatever it raises."""
    import torch_pruning

    torch.manual_seed(seed)
    model = network.build().eval()
    inputs = network.example(2)
    for value in model.parameters():
        value.requires_grad_(True)
    args, kwargs = arguments(inputs)
    example = kwargs or (args[0] if len(args) == 1 else args)
    before = [t.shape for t in _run(model, inputs)]
    parameters = sum(p.numel() for p in model.parameters())
    ignored = list(_last_layers(model, inputs))
    attentions = list(_attentions(model))
    _patch_forwards(model)
    start = time.thread_time()
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=fraction,
        round_to=8,
        ignored_layers=ignored,
        num_heads={layer: a.heads for a in attentions for layer in a.projections},
    )
    built = time.thread_time()
    record.peer_build_s = built - start
    for group in pruner.step(interactive=True):
        group.prune()
    for attention in attentions:
        attention.repair(pruner.num_heads)
    record.peer_prune_s = time.thread_time() - built
    record.peer_left = sum(p.numel() for p in model.parameters()) / parameters
    after = [t.shape for t in _run(model, inputs)]
    if after != before:
        raise AssertionError(f"outputs have shapes {after} instead of {before}")
    record.peer_passes = record.peer_left < 1


@dataclass(frozen=True)
class _Attention:
    """A module with heads, the attribute that counts them, and the layers that make queries, keys, values."""

    module: nn.Module
    count: str
    projections: tuple[nn.Linear, ...]

    @property
    def heads(self) -> int:
        return int(getattr(self.module, self.count))

    def repair(self, heads: dict[nn.Module, int]) -> None:
        """Set the number of heads and their width as the pruned layers have them."""
        layer = self.projections[0]
        width = layer.out_features // (3 if len(self.projections) == 1 else 1)
        setattr(self.module, self.count, heads.get(layer, self.heads))
        for name in ("head_dim", "attention_head_size"):
            if hasattr(self.module, name):
                setattr(self.module, name, width // self.heads)
        for name in ("all_head_size", "attn_dim"):
            if hasattr(self.module, name):
                setattr(self.module, name, width)


def _attentions(model: nn.Module) -> Iterator[_Attention]:
    for module in model.modules():
        count = next((n for n in _HEAD_COUNTS if isinstance(getattr(module, n, None), int)), None)
        found = next((layers for names in _PROJECTIONS if (layers := _linear(module, names))), None)
        if count and found:
            yield _Attention(module, count, found)


def _linear(module: nn.Module, names: tuple[str, ...]) -> tuple[nn.Linear, ...] | None:
    layers = [getattr(module, name, None) for name in names]
    linear = tuple(layer for layer in layers if isinstance(layer, nn.Linear))
    return linear if len(linear) == len(names) else None


def _patch_forwards(model: nn.Module) -> None:
    for module in model.modules():
        kind = type(module)
        if kind.__name__ == "Attention" and hasattr(module, "qkv") and hasattr(module, "q_norm"):
            vars(module)["forward"] = partial(_attention_forward, module)


def _attention_forward(self: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Do as timm's attention, with the width read from the tensors. `[n, tokens, width]` to the same."""
    n, tokens, _width = x.shape
    qkv = self.qkv(x).reshape(n, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    x = scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
    x = x.transpose(1, 2).reshape(n, tokens, -1)
    made: Tensor = self.proj(self.norm(x) if hasattr(self, "norm") else x)
    return made


def _last_layers(model: nn.Module, inputs: Any) -> Iterator[nn.Module]:
    """Layers whose outputs are the network's: those that return one of its tensors, and the last to run."""
    made: list[tuple[nn.Module, int]] = []

    def note(module: nn.Module, _: Any, output: Tensor) -> None:
        made.append((module, output.data_ptr()))
        alive.append(output)

    alive: list[Tensor] = []
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, layers)]
    outputs = _run(model, inputs)
    for handle in handles:
        handle.remove()
    addresses = {t.data_ptr() for t in outputs}
    yield from (module for module, address in made if address in addresses)
    yield from (module for module, _ in made[-1:])
    yield from (m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000)


def _run(model: nn.Module, inputs: Any) -> list[Tensor]:
    args, kwargs = arguments(inputs)
    with torch.no_grad():
        return list(tensors_in(model(*args, **kwargs)))
