"""Random small networks over sequences: attention of several kinds, gates, norms, convolutions, recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

LENGTH, INPUTS = 6, 5


@dataclass(frozen=True)
class Block:
    """One block: what it does, and two numbers that shape it."""

    kind: str
    numbers: tuple[int, int]


class Heads(nn.Module):
    """Attention: fused or separate projections, grouped keys, own or default scale, sizes from attributes or shapes."""

    def __init__(self, width: int, numbers: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.dim = [(2, 4), (4, 2), (4, 4), (1, 4), (6, 2), (4, 6)][numbers[0] % 6]
        self.keys = self.heads // 2 if numbers[1] % 3 == 0 and self.heads % 2 == 0 else self.heads
        self.fused, self.native = numbers[1] % 2 == 0 and self.keys == self.heads, numbers[1] % 4 < 2
        self.scale = None if numbers[1] % 5 < 2 else 0.4
        inner, small = self.heads * self.dim, self.keys * self.dim
        if self.fused:
            self.qkv = nn.Linear(width, 3 * inner)
        else:
            self.q, self.k, self.v = nn.Linear(width, inner), nn.Linear(width, small), nn.Linear(width, small)
        self.out = nn.Linear(inner, width)

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        if self.fused:
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        q = self.q(x).view(b, n, self.heads, self.dim).transpose(1, 2)
        k = self.k(x).view(b, n, self.keys, self.dim).transpose(1, 2)
        v = self.v(x).view(b, n, self.keys, self.dim).transpose(1, 2)
        times = self.heads // self.keys
        return q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projected(x)
        if self.native:
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
            y = (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).flatten(2))


class Torch(nn.Module):
    """`nn.MultiheadAttention`, batch first or not."""

    def __init__(self, width: int, numbers: tuple[int, int]) -> None:
        super().__init__()
        self.first = bool(numbers[1] % 2)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=self.first, bias=bool(numbers[0] % 2))

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.first else x.transpose(0, 1)
        y = self.attention(y, y, y, need_weights=False)[0]
        return x + (y if self.first else y.transpose(0, 1))


class Mlp(nn.Module):
    """Two layers; plain, gated, or gated by one projection that is cut in two."""

    def __init__(self, width: int, numbers: tuple[int, int]) -> None:
        super().__init__()
        self.kind, hidden = numbers[0] % 3, 4 + 2 * (numbers[1] % 5)
        self.up = nn.Linear(width, hidden * (1 + (self.kind == 2)))
        self.gate = nn.Linear(width, hidden) if self.kind == 1 else nn.Identity()
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.kind == 2:
            a, b = y.chunk(2, -1)
            return x + self.down(F.silu(a) * b)
        return x + self.down(F.gelu(y) * torch.sigmoid(self.gate(x)) if self.kind == 1 else F.gelu(y))


class Norm(nn.Module):
    """LayerNorm, RMSNorm, GroupNorm or BatchNorm over the channels."""

    def __init__(self, width: int, numbers: tuple[int, int]) -> None:
        super().__init__()
        makers: list[Callable[[], nn.Module]] = [
            lambda: nn.LayerNorm(width),
            lambda: nn.RMSNorm(width),
            lambda: nn.GroupNorm(4, width),
            lambda: nn.BatchNorm1d(width),
        ]
        self.kind = numbers[0] % 4
        self.norm = makers[self.kind]()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == 2:
            return self.norm(x.transpose(1, 2)).transpose(1, 2).contiguous()
        return self.norm(x.reshape(-1, x.shape[-1])).view(x.shape)


class Local(nn.Module):
    """A convolution along the sequence, grouped or depthwise, then a pointwise one."""

    def __init__(self, width: int, numbers: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=[1, 2, width][numbers[0] % 3])
        self.point = nn.Conv1d(width, width, 1) if numbers[1] % 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.point(F.relu(self.conv(x.transpose(1, 2)))).transpose(1, 2)


class Tokens(nn.Module):
    """MLP-Mixer: layers along the sequence; without biases, so that a channel of zeros stays one."""

    def __init__(self, width: int, numbers: tuple[int, int]) -> None:
        super().__init__()
        hidden = 3 + numbers[0] % 4
        self.up, self.down = nn.Linear(LENGTH, hidden, bias=False), nn.Linear(hidden, LENGTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x.transpose(1, 2)))).transpose(1, 2)


class Recurrent(nn.Module):
    """LSTM or GRU, one way or both, then back to the width."""

    def __init__(self, width: int, numbers: tuple[int, int]) -> None:
        super().__init__()
        both = bool(numbers[1] % 2)
        hidden = 3 + numbers[1] % 3
        self.cells = [nn.LSTM, nn.GRU][numbers[0] % 2](width, hidden, batch_first=True, bidirectional=both)
        self.back = nn.Linear(hidden * (1 + both), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.cells(x)[0])


class Windows(nn.Module):
    """A gate for every window of the sequence, by views and permutations."""

    def __init__(self, width: int, numbers: tuple[int, int]) -> None:
        super().__init__()
        self.size, self.gate = [2, 3][numbers[0] % 2], nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        y = x.view(b, n // self.size, self.size, c).reshape(-1, self.size, c)
        y = y * torch.sigmoid(self.gate(y.sum(1, keepdim=True)))
        return y.view(b, n // self.size, self.size, c).reshape(b, n, c)


class Parts(nn.Module):
    """The width is cut, the pieces are worked on and put together in another order."""

    def __init__(self, width: int, numbers: tuple[int, int]) -> None:
        super().__init__()
        self.sizes = [[width // 2, width // 2], [width // 4, width - width // 4]][numbers[0] % 2]
        self.a, self.b = nn.Linear(self.sizes[0], self.sizes[0]), nn.Linear(self.sizes[1], self.sizes[1])
        self.swapped = bool(numbers[1] % 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split(self.sizes, -1)
        a, b = torch.tanh(self.a(a)), self.b(b)
        return torch.cat([b, a] if self.swapped else [a, b], -1)


KINDS: dict[str, Callable[[int, tuple[int, int]], nn.Module]] = {
    "heads": Heads, "torch": Torch, "mlp": Mlp, "norm": Norm, "local": Local, "tokens": Tokens,
    "recurrent": Recurrent, "windows": Windows, "parts": Parts,
}  # fmt: skip


class RandomSequence(nn.Module):
    """An embedding, blocks, and a head on the mean of the sequence."""

    def __init__(self, width: int, program: tuple[Block, ...]) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(INPUTS, width), nn.Linear(width, 3)
        self.place = nn.Parameter(torch.zeros(1, LENGTH, width))
        self.blocks = nn.Sequential(*[KINDS[block.kind](width, block.numbers) for block in program])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x) + self.place).sum(1) / LENGTH)


@st.composite
def sequences(draw: st.DrawFn, longest: int = 5) -> tuple[int, tuple[Block, ...]]:
    """A width and a program."""
    numbers = st.tuples(st.integers(0, 11), st.integers(0, 11))
    blocks = st.builds(Block, st.sampled_from(sorted(KINDS)), numbers)
    return draw(st.sampled_from([8, 12])), tuple(draw(st.lists(blocks, min_size=1, max_size=longest)))
