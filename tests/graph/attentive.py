"""Small networks with attention, in the ways in which people write it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graph.registry import network


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


@network
def dict_inputs() -> tuple[nn.Module, tuple[Any, ...]]:
    return Cross(), ({"x": torch.randn(2, 6, 5), "memory": torch.randn(2, 9, 7)},)


class Pooling(nn.Module):
    """A learnt query pools a sequence; the weights of the attention are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query = nn.Linear(5, 8), nn.Parameter(torch.zeros(1, 1, 8))
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.attention(self.query.expand(x.shape[0], -1, -1), x, x)[0][:, 0])


@network
def attention_pooling() -> tuple[nn.Module, tuple[Any, ...]]:
    return Pooling(), (torch.randn(2, 6, 5),)


class OtherWidths(nn.Module):
    """`nn.MultiheadAttention` whose keys and values have widths of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.memory, self.head = nn.Linear(5, 8), nn.Linear(7, 6), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        memory = self.memory(memory)
        return self.head(self.attention(self.embed(x), memory, memory, need_weights=False)[0])


@network
def attention_over_other_widths() -> tuple[nn.Module, tuple[Any, ...]]:
    return OtherWidths(), (torch.randn(2, 6, 5), torch.randn(2, 9, 7))


class Einsum(nn.Module):
    """Heads as an axis of raw weights, contracted by `einsum`."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.zeros(5, 4, 6)), nn.Parameter(torch.zeros(4, 6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bnhd,hdo->bno", torch.relu(torch.einsum("bnc,chd->bnhd", x, self.w)), self.v)


@network
def einsum_heads() -> tuple[nn.Module, tuple[Any, ...]]:
    return Einsum(), (torch.randn(2, 6, 5),)


class EinsumTwice(nn.Module):
    """The same, called twice: each call views the same weights anew."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Einsum()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.inner(x.flip(1) * 2)


@network
def einsum_heads_twice() -> tuple[nn.Module, tuple[Any, ...]]:
    return EinsumTwice(), (torch.randn(2, 6, 5),)


class ScaledByAttribute(nn.Module):
    """Works out its scale in each pass, from the attribute that its views are given; keys serve two queries each."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim, self.groups, self.queries = 6, 3, 2
        self.embed, self.q, self.o = nn.Linear(5, 8), nn.Linear(8, 36), nn.Linear(36, 3)
        self.k, self.v = nn.Linear(8, 18), nn.Linear(8, 18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.groups, self.queries, self.head_dim)
        k, v = (layer(x).view(b, n, self.groups, self.head_dim) for layer in (self.k, self.v))
        scores = torch.einsum("bngqd,bmgd->bgqnm", q, k) / math.sqrt(self.head_dim)
        return self.o(torch.einsum("bgqnm,bmgd->bngqd", scores.softmax(-1), v).reshape(b, n, -1))


@network
def attention_scaled_by_an_attribute() -> tuple[nn.Module, tuple[Any, ...]]:
    return ScaledByAttribute(), (torch.randn(2, 6, 5),)


class LearnedQueries(nn.Module):
    """Learned queries look at inputs of another width, a step of time after the other; one bias serves three products."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.embed = nn.Parameter(torch.randn(3, 1, 8)), nn.Linear(5, 6)
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        memory, queries = self.embed(x).transpose(0, 1), self.queries.expand(-1, x.shape[0], -1)
        return self.head(self.attention(queries, memory, memory, need_weights=False)[0].transpose(0, 1))


@network
def attention_of_learned_queries() -> tuple[nn.Module, tuple[Any, ...]]:
    return LearnedQueries(), (torch.randn(2, 6, 5),)
