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
