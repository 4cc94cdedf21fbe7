"""What a network costs on devices that are not at hand, and one plan that keeps a deadline on several of them.

    python examples/devices.py

Figures for devices other than this machine are estimates from sourced data sheets, and the report says so.
"""

import torch
from torch import nn

import sned
from sned.devices import cost_for


def layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A convolution with its normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


torch.manual_seed(0)
model = nn.Sequential(
    layer(3, 32, 2), layer(32, 64, 1), layer(64, 128, 2), layer(128, 128, 1), layer(128, 256, 2),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 100),
).eval()  # fmt: skip
x = torch.randn(1, 3, 112, 112)

graph = sned.trace(model, x)
units = [[group.size for group in graph.groups], [group.size // 2 for group in graph.groups]]
for device in ("galaxy-s26", "iphone-17", "pixel-9", "raspberry-pi-5"):
    cost = cost_for(graph, sned.Budget(latency_ms="50%", device=device))
    whole, half = cost.evaluate(units).latency_ms
    print(f"{device}: {whole:.1f} ms, {half:.1f} ms with half of every group (estimates)")

budget = sned.Budget(latency_ms="60%", device="samsung-iphone-2026")
result = sned.prune(model, x, budget=budget, calibration=[torch.randn(32, 3, 112, 112)])
print(result.report)
