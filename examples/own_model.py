"""A network of your own: pruned to half of its MACs, saved, loaded, and written for ONNX Runtime.

    python examples/own_model.py

Everything that is yours stands in the first half; sned needs the network, an example input, and inputs without labels.
"""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import sned

images, labels = load_digits(return_X_y=True)
inputs = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
targets = torch.tensor(labels)
train, test = slice(0, 1400), slice(1400, None)


def make_model() -> nn.Module:
    """A plain classifier of 8 × 8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def accuracy(model: nn.Module) -> float:
    """Fraction of test images classified right."""
    with torch.no_grad():
        return float((model(inputs[test]).argmax(1) == targets[test]).float().mean())


torch.manual_seed(0)
model = make_model()
optimiser = torch.optim.Adam(model.parameters(), 2e-3)
for _ in range(10):
    for batch in torch.randperm(1400).split(64):
        loss = nn.functional.cross_entropy(model(inputs[train][batch]), targets[train][batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
model.eval()

result = sned.prune(model, inputs[:1], budget=sned.Budget(macs="50%"), calibration=inputs[:512].split(64))
print(result.report)
print(f"accuracy {accuracy(model):.1%} before, {accuracy(result.model):.1%} after, without training")

out = Path("out/examples")
sned.save(result.model, out / "small.safetensors")
again = sned.load(make_model(), out / "small.safetensors").eval()
assert torch.equal(again(inputs[test]), result.model(inputs[test]))
exported = sned.export(
    again, inputs[:1], to="onnx", calibration=inputs[:512].split(64), out=out / "small.onnx"
)
print(
    f"{exported.path} agrees with PyTorch to {exported.parity.max_abs_diff:.1e}: {exported.size_bytes:,} bytes"
)
