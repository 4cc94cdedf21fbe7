"""Cut deep, then train on with the dense network as the teacher; zeros in place of units hold through training.

    python examples/fine_tuning.py

An interrupted run goes on from its last epoch when the script is started again.
"""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import sned

images, labels = load_digits(return_X_y=True)
inputs = torch.tensor(images, dtype=torch.float32) / 16
targets = torch.tensor(labels)
train, test = (inputs[:1400], targets[:1400]), (inputs[1400:], targets[1400:])


def accuracy(model: nn.Module) -> float:
    """Fraction of test images classified right."""
    with torch.no_grad():
        return float((model(test[0]).argmax(1) == test[1]).float().mean())


torch.manual_seed(0)
network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
dense = sned.finetune(network, train, epochs=40, learning_rate=0.05).model.eval()
print(f"dense: {accuracy(dense):.1%}, {sum(p.numel() for p in dense.parameters()):,} parameters")

budget, calibration = sned.Budget(sparsity=0.95), inputs[:512].split(64)
small = sned.prune(dense, inputs[:2], budget=budget, calibration=calibration).model
print(f"a twentieth of the units: {accuracy(small):.1%} without training")
tuned = sned.finetune(small, train, teacher=dense, epochs=40, folder=Path("out/examples/tuned"))
print(f"trained on with its teacher: {accuracy(tuned.model):.1%}")

sparse = sned.sparsify(dense, inputs[:2], sparsity=0.95, calibration=calibration).model
trained = sned.finetune(sparse, train, teacher=dense, epochs=20).model
zeros = [float((layer.weight == 0).float().mean()) for layer in trained if isinstance(layer, nn.Linear)]
print(f"a twentieth of the weights: {accuracy(sparse):.1%}, trained on {accuracy(trained):.1%}")
print("still zero, layer by layer: " + ", ".join(f"{share:.0%}" for share in zeros))
