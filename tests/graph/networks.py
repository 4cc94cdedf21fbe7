"""Small networks, one for each line of what sned must prune without per-model code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Maker = Callable[[], tuple[nn.Module, tuple[Any, ...]]]
NETWORKS: dict[str, Maker] = {}


def network(maker: Maker) -> Maker:
    """Register a maker of (module, inputs) under the name of its function."""
    NETWORKS[maker.__name__] = maker
    return maker


class Residual(nn.Module):
    """Stem, a block whose shortcut is the identity, one whose shortcut is a strided conv, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.a1, self.a2 = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(12, 12, 3, padding=1)
        self.down = nn.Conv2d(8, 12, 1, 2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.a2(F.relu(self.a1(x))))
        x = F.relu(self.down(x) + self.b2(F.relu(self.b1(x))))
        return self.fc(x.mean((2, 3)))


@network
def residual() -> tuple[nn.Module, tuple[Any, ...]]:
    return Residual(), (torch.randn(2, 3, 8, 8),)


class Dense(nn.Module):
    """Every layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 4 * i) for i in range(3))
        self.stem, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(x)]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            parts.append(layer(F.relu(norm(torch.cat(parts, 1)))))
        return self.fc(F.adaptive_avg_pool2d(torch.cat(parts, 1), 1).flatten(1))


@network
def dense() -> tuple[nn.Module, tuple[Any, ...]]:
    return Dense(), (torch.randn(2, 3, 6, 6),)


class Branches(nn.Module):
    """Inception-like: three branches of different widths, concatenated, then summed with a fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b1, self.b2 = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3, padding=1)
        self.c, self.d, self.head = nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b2(self.b1(x)), self.c(F.max_pool2d(x, 3, 1, 1))], 1)
        return self.head(F.relu(y + self.d(x)))


@network
def multi_branch() -> tuple[nn.Module, tuple[Any, ...]]:
    return Branches(), (torch.randn(2, 3, 6, 6),)


@network
def flattened() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 3 * 3, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    )
    return net, (torch.randn(2, 3, 8, 8),)


@network
def depthwise() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 1),
    )
    return net, (torch.randn(2, 3, 6, 6),)


@network
def depthwise_multiplier() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.ReLU(), nn.Conv2d(12, 4, 1))
    return net, (torch.randn(2, 3, 6, 6),)


@network
def grouped() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, groups=4, padding=1),
        nn.BatchNorm2d(24),
        nn.Conv2d(24, 4, 1),
    )
    return net, (torch.randn(2, 3, 6, 6),)


@network
def grouped_twice() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 1),
        nn.Conv2d(16, 16, 3, groups=4),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=2),
        nn.Conv2d(16, 4, 1),
    )
    return net, (torch.randn(2, 3, 7, 7),)


@network
def transposed() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), nn.ConvTranspose2d(6, 3, 3)
    )
    return net, (torch.randn(2, 3, 6, 6),)


@network
def transposed_grouped() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 12, 2, 2, groups=4), nn.ReLU(), nn.Conv2d(12, 3, 1)
    )
    return net, (torch.randn(2, 3, 6, 6),)


class SqueezeExcite(nn.Module):
    """A gate from the pooled channels multiplies them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(x * gate)


@network
def squeeze_excite() -> tuple[nn.Module, tuple[Any, ...]]:
    return SqueezeExcite(), (torch.randn(2, 3, 6, 6),)


class Shuffle(nn.Module):
    """ShuffleNet: half the channels pass, the rest is worked on, and both are interleaved; sizes from the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            a, b = x.chunk(2, 1)
            x = torch.cat([a, branch(b)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(x))


@network
def channel_shuffle() -> tuple[nn.Module, tuple[Any, ...]]:
    return Shuffle(), (torch.randn(2, 3, 6, 6),)


@network
def channel_shuffle_module() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 12, 1),
        nn.Conv2d(12, 12, 1, groups=3),
        nn.ChannelShuffle(3),
        nn.Conv2d(12, 12, 3, groups=3),
        nn.Conv2d(12, 4, 1),
    )
    return net, (torch.randn(2, 3, 6, 6),)


class Split(nn.Module):
    """Parts of unequal size, by numbers that the module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [4, 8]
        self.stem, self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.stem(x), self.sizes, dim=1)
        return self.head(self.a(a) * self.b(b))


@network
def channel_split() -> tuple[nn.Module, tuple[Any, ...]]:
    return Split(), (torch.randn(2, 3, 6, 6),)


@network
def pixel_shuffle() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 24, 3, padding=1),
        nn.PixelShuffle(2),
        nn.Conv2d(6, 3, 1),
    )
    return net, (torch.randn(2, 3, 5, 5),)


@network
def pixel_unshuffle() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.PixelUnshuffle(2),
        nn.Conv2d(24, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 3, 1),
    )
    return net, (torch.randn(2, 3, 6, 6),)


@network
def group_norm() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 4, 1))
    return net, (torch.randn(2, 3, 6, 6),)


@network
def layer_norm() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))
    return net, (torch.randn(2, 7, 5),)


@network
def batch_norm() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1))
    return net, (torch.randn(2, 3, 6, 6),)


@network
def instance_norm() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16, affine=True), nn.ReLU(), nn.Conv2d(16, 4, 1)
    )
    return net, (torch.randn(2, 3, 6, 6),)


@network
def instance_norm_tracked() -> tuple[nn.Module, tuple[Any, ...]]:
    norm = nn.InstanceNorm2d(16, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.ReLU(), nn.Conv2d(16, 4, 1)), (
        torch.randn(2, 3, 6, 6),
    )


@network
def rms_norm() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(nn.Linear(5, 16), nn.RMSNorm(16), nn.SiLU(), nn.Linear(16, 3))
    return net, (torch.randn(2, 7, 5),)


class LlamaNorm(nn.Module):
    """RMSNorm as Llama writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon))


@network
def rms_norm_by_hand() -> tuple[nn.Module, tuple[Any, ...]]:
    return nn.Sequential(nn.Linear(5, 16), LlamaNorm(16), nn.Linear(16, 3)), (torch.randn(2, 7, 5),)


class Attention(nn.Module):
    """`nn.MultiheadAttention` in a residual block."""

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        return self.head(x + self.attention(y, y, y, need_weights=False)[0])


@network
def multihead_attention() -> tuple[nn.Module, tuple[Any, ...]]:
    return Attention(), (torch.randn(2, 6, 5),)


@network
def transformer_encoder_layer() -> tuple[nn.Module, tuple[Any, ...]]:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=True)
    return nn.Sequential(nn.Linear(5, 16), layer, nn.Linear(16, 3)), (torch.randn(2, 6, 5),)


class FusedQkv(nn.Module):
    """timm's: one projection for queries, keys and values, a view by numbers that the module holds."""

    def __init__(self, *, fused: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fused = 4, 4, fused
        self.scale = self.head_dim**-0.5
        self.embed, self.qkv, self.proj = nn.Linear(5, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim)
        return self.head(x + self.proj(y))


@network
def fused_qkv() -> tuple[nn.Module, tuple[Any, ...]]:
    return FusedQkv(), (torch.randn(2, 6, 5),)


@network
def fused_qkv_sdpa() -> tuple[nn.Module, tuple[Any, ...]]:
    return FusedQkv(fused=True), (torch.randn(2, 6, 5),)


class FusedQkvFromShape(nn.Module):
    """timm's, older: head size worked out from the input's width."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = 4, 0.5
        self.embed, self.qkv, self.proj, self.head = (
            nn.Linear(5, 16),
            nn.Linear(16, 48),
            nn.Linear(16, 16),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        y = ((q @ k.transpose(-2, -1)) * self.scale).softmax(-1) @ v
        return self.head(x + self.proj(y.transpose(1, 2).reshape(b, n, c)))


@network
def fused_qkv_from_shape() -> tuple[nn.Module, tuple[Any, ...]]:
    return FusedQkvFromShape(), (torch.randn(2, 6, 5),)


class Separate(nn.Module):
    """Separate projections; SDPA with its own scale or 1/sqrt(d)."""

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.heads, self.dim, self.scale = 4, 4, scale
        self.embed = nn.Linear(5, 12)
        self.q, self.k, self.v = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(12, 16)
        self.out, self.head = nn.Linear(16, 12), nn.Linear(12, 3)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, self.dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        y = y.transpose(1, 2).contiguous().view(x.shape[0], x.shape[1], self.heads * self.dim)
        return self.head(x + self.out(y))


@network
def separate_projections() -> tuple[nn.Module, tuple[Any, ...]]:
    return Separate(0.5), (torch.randn(2, 6, 5),)


@network
def sdpa_default_scale() -> tuple[nn.Module, tuple[Any, ...]]:
    return Separate(None), (torch.randn(2, 6, 5),)


class Cross(Separate):
    """Keys and values from another sequence of another width and length."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.k, self.v = nn.Linear(7, 16), nn.Linear(7, 16)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:  # type: ignore[override]
        x = self.embed(x)
        q, k, v = self.split(self.q(x)), self.split(self.k(memory)), self.split(self.v(memory))
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))


@network
def cross_attention() -> tuple[nn.Module, tuple[Any, ...]]:
    return Cross(), (torch.randn(2, 6, 5), torch.randn(2, 9, 7))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding as Llama does it."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos + turned * sin


class GroupedQuery(nn.Module):
    """Llama's attention: fewer key heads than query heads, optionally with rotary embeddings."""

    def __init__(self, *, rotary: bool) -> None:
        super().__init__()
        self.heads, self.key_heads, self.dim, self.rotary = 4, 2, 8, rotary
        self.embed, self.q = nn.Linear(5, 12), nn.Linear(12, 32, bias=False)
        self.k, self.v = nn.Linear(12, 16, bias=False), nn.Linear(12, 16, bias=False)
        self.out, self.head = nn.Linear(32, 12, bias=False), nn.Linear(12, 3)
        angle = torch.arange(6)[:, None] * 0.5 ** torch.arange(4)[None]
        self.register_buffer("cos", torch.cat([angle, angle], -1).cos())
        self.register_buffer("sin", torch.cat([angle, angle], -1).sin())

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.dim).transpose(1, 2)
        k = self.k(x).view(b, n, self.key_heads, self.dim).transpose(1, 2)
        v = self.v(x).view(b, n, self.key_heads, self.dim).transpose(1, 2)
        if self.rotary:
            q, k = rotate(q, self.cos, self.sin), rotate(k, self.cos, self.sin)
        times = self.heads // self.key_heads
        k = k[:, :, None].expand(b, self.key_heads, times, n, self.dim).reshape(b, self.heads, n, self.dim)
        v = v[:, :, None].expand(b, self.key_heads, times, n, self.dim).reshape(b, self.heads, n, self.dim)
        y = (q @ k.transpose(2, 3) * 0.3).softmax(-1) @ v
        return self.head(x + self.out(y.transpose(1, 2).reshape(b, n, -1)))


@network
def grouped_query() -> tuple[nn.Module, tuple[Any, ...]]:
    return GroupedQuery(rotary=False), (torch.randn(2, 6, 5),)


@network
def rotary() -> tuple[nn.Module, tuple[Any, ...]]:
    return GroupedQuery(rotary=True), (torch.randn(2, 6, 5),)


class RepeatedKeys(nn.Module):
    """Grouped-query attention with `repeat_interleave`, and SDPA's own `enable_gqa`."""

    def __init__(self, *, native: bool) -> None:
        super().__init__()
        self.heads, self.key_heads, self.dim, self.native = 4, 2, 4, native
        self.embed, self.q, self.k, self.v = (
            nn.Linear(5, 12),
            nn.Linear(12, 16),
            nn.Linear(12, 8),
            nn.Linear(12, 8),
        )
        self.out, self.head = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.dim).transpose(1, 2)
        k = self.k(x).view(b, n, self.key_heads, self.dim).transpose(1, 2)
        v = self.v(x).view(b, n, self.key_heads, self.dim).transpose(1, 2)
        if not self.native:
            k, v = (t.repeat_interleave(self.heads // self.key_heads, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5, enable_gqa=self.native)
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))


@network
def grouped_query_repeat_interleave() -> tuple[nn.Module, tuple[Any, ...]]:
    return RepeatedKeys(native=False), (torch.randn(2, 6, 5),)


@network
def grouped_query_native() -> tuple[nn.Module, tuple[Any, ...]]:
    return RepeatedKeys(native=True), (torch.randn(2, 6, 5),)


class RelativeBias(FusedQkv):
    """A table of one bias a head and distance, gathered by a constant index (Swin)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(11, 4))
        self.register_buffer("index", (torch.arange(6)[:, None] - torch.arange(6)[None] + 5).reshape(-1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index].view(n, n, -1).permute(2, 0, 1)
        y = ((q * self.scale) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        return self.head(x + self.proj(y.transpose(1, 2).reshape(b, n, -1)))


@network
def relative_position_bias() -> tuple[nn.Module, tuple[Any, ...]]:
    return RelativeBias(), (torch.randn(2, 6, 5),)


class EmbeddingBias(FusedQkv):
    """T5's: the bias is looked up in an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        at = torch.arange(n, device=x.device)
        bias = self.table(at[:, None] - at[None] + 5).permute(2, 0, 1).unsqueeze(0)
        y = ((q * self.scale) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        return self.head(x + self.proj(y.transpose(1, 2).flatten(2)))


@network
def relative_position_embedding() -> tuple[nn.Module, tuple[Any, ...]]:
    return EmbeddingBias(), (torch.randn(2, 6, 5),)


@network
def glu() -> tuple[nn.Module, tuple[Any, ...]]:
    return nn.Sequential(nn.Linear(5, 16), nn.GLU(), nn.Linear(8, 3)), (torch.randn(2, 6, 5),)


@network
def glu_conv() -> tuple[nn.Module, tuple[Any, ...]]:
    return nn.Sequential(nn.Conv1d(5, 16, 3), nn.GLU(1), nn.Conv1d(8, 3, 1)), (torch.randn(2, 5, 6),)


class SwiGlu(nn.Module):
    """Two projections, or one that is cut in two."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.gate, self.down = nn.Linear(5, 16 if fused else 8), nn.Linear(8, 3)
        self.up = nn.Identity() if fused else nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            a, b = self.gate(x).chunk(2, -1)
        else:
            a, b = self.gate(x), self.up(x)
        return self.down(F.silu(a) * b)


@network
def swiglu() -> tuple[nn.Module, tuple[Any, ...]]:
    return SwiGlu(fused=False), (torch.randn(2, 6, 5),)


@network
def swiglu_fused() -> tuple[nn.Module, tuple[Any, ...]]:
    return SwiGlu(fused=True), (torch.randn(2, 6, 5),)


class Windowed(nn.Module):
    """Swin's: windows cut out of a shifted image, attention inside each, put back."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = 2, 4, shift
        self.embed, self.qkv, self.proj, self.head = (
            nn.Linear(3, 8),
            nn.Linear(8, 24),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, h, w, c = x.shape
        s = self.window
        y = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        y = y.view(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        qkv = self.qkv(y).reshape(y.shape[0], s * s, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        y = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(-1, s * s, c))
        y = y.view(b, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        y = torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y
        return self.head(x + y)


@network
def windowed_attention() -> tuple[nn.Module, tuple[Any, ...]]:
    return Windowed(0), (torch.randn(2, 8, 8, 3),)


@network
def shifted_windows() -> tuple[nn.Module, tuple[Any, ...]]:
    return Windowed(2), (torch.randn(2, 8, 8, 3),)


class Recurrent(nn.Module):
    """Embedding, a recurrent layer, a tagger."""

    def __init__(
        self, kind: type[nn.RNNBase], *, layers: int = 1, both: bool = False, first: bool = True
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.cells = kind(6, 8, num_layers=layers, bidirectional=both, batch_first=first)
        self.head = nn.Linear(16 if both else 8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cells(self.embed(ids))[0])


def tokens() -> Tensor:
    """Token ids."""
    return torch.arange(10).reshape(2, 5) * 7 % 20


@network
def lstm() -> tuple[nn.Module, tuple[Any, ...]]:
    return Recurrent(nn.LSTM), (tokens(),)


@network
def lstm_bidirectional() -> tuple[nn.Module, tuple[Any, ...]]:
    return Recurrent(nn.LSTM, both=True), (tokens(),)


@network
def lstm_layers() -> tuple[nn.Module, tuple[Any, ...]]:
    return Recurrent(nn.LSTM, layers=2), (tokens(),)


@network
def lstm_layers_bidirectional() -> tuple[nn.Module, tuple[Any, ...]]:
    return Recurrent(nn.LSTM, layers=2, both=True), (tokens(),)


@network
def gru() -> tuple[nn.Module, tuple[Any, ...]]:
    return Recurrent(nn.GRU), (tokens(),)


@network
def gru_layers_bidirectional() -> tuple[nn.Module, tuple[Any, ...]]:
    return Recurrent(nn.GRU, layers=2, both=True), (tokens(),)


class Cell(nn.Module):
    """An LSTM cell stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.cell.hidden_size)
        for step in range(3):
            h, c = self.cell(x[:, step], (h, c))
        return self.head(h)


@network
def lstm_cell() -> tuple[nn.Module, tuple[Any, ...]]:
    return Cell(), (torch.randn(2, 3, 5),)


class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mid = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + torch.tanh(self.mid(x)))


@network
def tied_weights() -> tuple[nn.Module, tuple[Any, ...]]:
    return Tied(), (tokens(),)


class Raw(nn.Module):
    """No layers at all: weights, a class token, positions, a scale, an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(5, 8))
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 7, 8))
        self.gamma = nn.Parameter(torch.ones(8))
        self.mix = nn.Parameter(torch.zeros(8, 6))
        self.head = nn.Parameter(torch.zeros(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.w
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        x = torch.einsum("bnc,cd->bnd", x * self.gamma, self.mix)
        return F.linear(torch.relu(x[:, 0]), self.head)


@network
def raw_parameters() -> tuple[nn.Module, tuple[Any, ...]]:
    return Raw(), (torch.randn(2, 6, 5),)


@network
def conv_1d() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 4, 3, dilation=2)
    )
    return net, (torch.randn(2, 3, 16),)


@network
def conv_3d() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(8, 4, 1))
    return net, (torch.randn(2, 3, 6, 6, 6),)


@dataclass
class Answer:
    """What a network returns."""

    scores: Tensor
    features: dict[str, Tensor]


class Returns(nn.Module):
    """One body, answers of several kinds."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.body, self.inner, self.a, self.b = (
            nn.Linear(5, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.inner(F.relu(self.body(x))))
        a, b = self.a(x), self.b(x)
        answers = {"tuple": (a, (b,)), "dict": {"a": a, "deep": {"b": b}}, "dataclass": Answer(a, {"b": b})}
        return answers[self.kind]


@network
def returns_tuple() -> tuple[nn.Module, tuple[Any, ...]]:
    return Returns("tuple"), (torch.randn(2, 5),)


@network
def returns_dict() -> tuple[nn.Module, tuple[Any, ...]]:
    return Returns("dict"), (torch.randn(2, 5),)


@network
def returns_dataclass() -> tuple[nn.Module, tuple[Any, ...]]:
    return Returns("dataclass"), (torch.randn(2, 5),)


@network
def frozen_parameters() -> tuple[nn.Module, tuple[Any, ...]]:
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    net[0].requires_grad_(False)
    return net, (torch.randn(2, 5),)


class SharedTwice(nn.Module):
    """One layer, called twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.shared(F.relu(self.shared(self.stem(x))))))


@network
def shared_twice() -> tuple[nn.Module, tuple[Any, ...]]:
    return SharedTwice(), (torch.randn(2, 3, 6, 6),)


@network
def dict_inputs() -> tuple[nn.Module, tuple[Any, ...]]:
    return Cross(), ({"x": torch.randn(2, 6, 5), "memory": torch.randn(2, 9, 7)},)


class UNet(nn.Module):
    """Down, up, and the skip concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Conv2d(6, 10, 3, 2, 1),
            nn.Conv2d(10, 10, 3, padding=1),
        )
        self.up, self.d, self.head = (
            nn.ConvTranspose2d(10, 6, 2, 2),
            nn.Conv2d(12, 6, 3, padding=1),
            nn.Conv2d(6, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        x = self.up(F.relu(self.c(F.relu(self.b(a)))))
        return self.head(F.relu(self.d(torch.cat([x, a], 1))))


@network
def unet() -> tuple[nn.Module, tuple[Any, ...]]:
    return UNet(), (torch.randn(2, 3, 8, 8),)
