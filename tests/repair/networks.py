"""Small networks whose repair can be worked out by hand."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block with BatchNorm between a stem and a head."""

    def __init__(self, *, relu: bool = True, late: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(8, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.conv2, self.bn2 = nn.Conv2d(10, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.act: nn.Module = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.late = late
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        y = self.act(x + y if self.late else y + x)
        return self.head(y.mean((2, 3)))


def block(seed: int = 0, *, relu: bool = True, late: bool = False) -> nn.Module:
    """A `Block` with weights and statistics of its own."""
    torch.manual_seed(seed)
    model = Block(relu=relu, late=late)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) * 0.3
            module.running_var = torch.rand(module.num_features) + 0.5
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def images(count: int = 64, seed: int = 1) -> Tensor:
    """Images that are smooth, so that neighbours say something about each other."""
    noise = torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(noise, 5, 1) * 5


class ChannelsLast(nn.Module):
    """A residual block as Keras runs it: convolutions in between permutes, biases and norms written out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 10, 3), nn.Conv2d(10, 8, 3)
        self.norm1, self.norm2 = nn.BatchNorm2d(10), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self._conv(self.stem, x.permute(0, 2, 3, 1)).relu()
        y = self._norm(self.norm1, self._conv(self.conv1, x)).relu()
        y = self._norm(self.norm2, self._conv(self.conv2, y))
        return self.head((y + x).relu().mean((1, 2)))

    @staticmethod
    def _conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
        made = nn.functional.conv2d(x.permute(0, 3, 1, 2), conv.weight, padding=conv.kernel_size[0] // 2)
        return made.permute(0, 2, 3, 1) + conv.bias.reshape(1, 1, 1, -1)

    @staticmethod
    def _norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
        scale = torch.rsqrt(norm.running_var.reshape(1, 1, 1, -1) + norm.eps) * norm.weight.reshape(
            1, 1, 1, -1
        )
        return (x - norm.running_mean.reshape(1, 1, 1, -1)).mul_(scale).add_(norm.bias.reshape(1, 1, 1, -1))


class ChannelsFirst(ChannelsLast):
    """The same, as PyTorch has it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.norm1(self._padded(self.conv1, x)).relu()
        y = self.norm2(self._padded(self.conv2, y))
        return self.head((y + x).relu().mean((2, 3)))

    @staticmethod
    def _padded(conv: nn.Conv2d, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)


def same_twice() -> tuple[nn.Module, nn.Module]:
    """Both of them with the same weights, and statistics of their own."""
    torch.manual_seed(0)
    first = ChannelsFirst()
    for norm in (first.norm1, first.norm2):
        norm.running_mean, norm.running_var = (
            torch.randn_like(norm.bias) * 0.3,
            torch.rand_like(norm.bias) + 0.5,
        )
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    last = ChannelsLast()
    last.load_state_dict(first.state_dict())
    return first.eval(), last.eval()


class Routed(nn.Module):
    """Each row goes to the expert that a router picks, so values say how many rows an expert gets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(16, 3)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        chosen, out = self.router(x).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            (rows,) = torch.where(chosen == number)
            out = out.index_add(0, rows, expert(x[rows]))
        return self.head(x + out)
