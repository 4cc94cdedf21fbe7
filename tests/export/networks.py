"""Small networks that between them use what real ones are made of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Convolutional(nn.Module):
    """Depthwise and grouped convolutions, a shortcut, a concatenation, pools, and activations that phones know."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), nn.MaxPool2d(3, 2, 1)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.Hardswish()
        )
        self.pointwise = nn.Sequential(nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x + self.depthwise(x), nn.functional.avg_pool2d(x, 3, 1, 1)], 1)
        return self.head(self.pointwise(x).mean((2, 3)))


class Of(nn.Module):
    """A network of one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Encoder(nn.Module):
    """Token ids and a mask in a dict, positions counted from 1, attention written out, an output with a name."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(50, 32), nn.Embedding(9, 32)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.inner, self.outer = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.embedding(ids) + self.places(torch.arange(ids.shape[1]) + 1)
        batch, length, width = x.shape
        q, k, v = (
            self.qkv(self.norm1(x)).reshape(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4).unbind(0)
        )
        hidden = (1 - mask)[:, None, None, :] * -1e4
        attended = ((q @ k.transpose(-1, -2)) / (width // 4) ** 0.5 + hidden).softmax(-1) @ v
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        x = x + self.outer(nn.functional.gelu(self.inner(self.norm2(x))))
        return {"logits": self.head((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))}


def convolutional(seed: int = 0) -> Convolutional:
    """With BatchNorm statistics that folding must get right."""
    torch.manual_seed(seed)
    model = Convolutional().train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(32, 3, 16, 16) * 2 + 0.5)
    return model.eval()


def images(rows: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder().eval()


def sentences(rows: int, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 9, (rows, 1), generator=generator)
    return {
        "ids": torch.randint(0, 50, (rows, 8), generator=generator),
        "mask": (torch.arange(8)[None] < lengths).float(),
    }


NETWORKS: dict[str, tuple[Any, Any]] = {
    "convolutional": (convolutional, images),
    "encoder": (encoder, sentences),
}
