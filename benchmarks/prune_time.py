"""How long a whole `sned.prune` of a ResNet-50 at 224 px takes, and how much memory: random weights serve for that.

python -m benchmarks.prune_time [--images 256] [--macs 50%]
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator

import torch
from torch import nn

import sned
from sned.cli.zoo import import_torchvision
from sned.progress import RichProgress
from sned.report import environment

BATCH = 32


def peak_bytes() -> int:
    """The most memory that this process held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def import_libraries() -> None:
    """A whole run on a tiny network: all that is imported on the way is imported then."""
    tiny = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    x = torch.zeros(2, 3, 8, 8)
    sned.prune(tiny, x, budget=sned.Budget(macs="50%"), calibration=[torch.randn(64, 3, 8, 8)])


def images(count: int) -> Iterator[torch.Tensor]:
    """Smooth noise, a batch at a time, to be read once."""
    generator = torch.Generator().manual_seed(0)
    for at in range(0, count, BATCH):
        small = torch.randn(min(BATCH, count - at), 3, 28, 28, generator=generator)
        yield torch.nn.functional.interpolate(small, size=224, mode="bilinear")


def main() -> None:
    """Print seconds by stage, and memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--macs", default="50%", help="what may remain")
    options = parser.parse_args()
    import_torchvision()
    from torchvision import models

    torch.manual_seed(0)
    model = models.resnet50().eval()
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    import_libraries()
    before = peak_bytes()
    start = time.perf_counter()
    result = sned.prune(
        model,
        torch.zeros(1, 3, 224, 224),
        budget=sned.Budget(macs=options.macs),
        calibration=images(options.images),
        progress=RichProgress(),
    )
    seconds, more = time.perf_counter() - start, peak_bytes() - before
    where = environment()
    print(f"ResNet-50, 224 px, {options.images} images, {where.machine}, {torch.get_num_threads()} threads")
    print(f"{seconds:.0f} s in all; {more / 1e9:.2f} GB more at the peak; the model is {size / 1e9:.2f} GB")
    print(", ".join(f"{stage} {spent:.0f} s" for stage, spent in result.report.seconds.items()))
    for note in result.report.notes:
        print(f"- {note}")


if __name__ == "__main__":
    main()
