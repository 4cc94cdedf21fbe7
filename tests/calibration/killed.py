"""All stages that can be resumed, on a small network; as a program, one that kills itself on the way:

python -m tests.calibration.killed FOLDER TASK AFTER
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sned.calibration import Resume, calibrate
from sned.calibration import resume as module
from sned.graph.ir import Graph
from sned.graph.trace import state_of, trace
from sned.progress import SILENT, Advance, Progress
from sned.repair import repair
from sned.saliency import Evidence, least_important, score, sensitivities


@dataclass(frozen=True)
class Found:
    """What the stages came to."""

    told: list[float]
    state: dict[str, Tensor]


class Killer:
    """A progress that does something drastic once a task has advanced so many times."""

    def __init__(self, task: str, after: int, act: Callable[[], None]) -> None:
        self._task, self._left, self._act = task, after, act

    @contextmanager
    def task(self, label: str, total: float | None = None) -> Iterator[Advance]:
        """Watch a task."""

        def advance(amount: float = 1, /) -> None:
            if label.startswith(self._task):
                if not self._left:
                    self._act()
                self._left -= 1

        yield advance


class Small(nn.Module):
    """Three groups, four consumers, a batch normalisation and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.a, self.b = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.mid, self.head = nn.Linear(12, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.b(torch.relu(self.a(x)))
        return self.head(torch.relu(self.mid(x.mean((2, 3)))))


def network() -> tuple[Graph, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = Small().eval()
    graph = trace(model, torch.zeros(16, 3, 6, 6))
    return graph, dict(state_of(model))


def batches() -> list[Tensor]:
    return list(torch.randn(96, 3, 6, 6, generator=torch.Generator().manual_seed(1)).split(32))


def learn(resume: Resume, progress: Progress = SILENT) -> Found:
    """Calibrate, score, weigh and repair."""
    torch.set_num_threads(1)
    with small_batches():
        graph, state = network()
        learnt = calibrate(graph, state, batches(), limit=96, resume=resume, progress=progress)
        evidence = Evidence(graph, state, learnt, progress=progress)
        scores = score("reconstruction", evidence)
        found = sensitivities(evidence, scores)
        order = scores.order
        plan = graph.plan({g.name: least_important(g, order[g.name], g.size // 2) for g in graph.groups})
        repaired, _ = repair(graph, state, plan, learnt, progress=progress)
    told = [float(value) for name in sorted(found) for value in found[name].divergence]
    return Found(told, repaired)


@contextmanager
def small_batches() -> Iterator[None]:
    """Four batches of 24 inputs."""
    from sned.calibration import calibrate as function

    source = sys.modules[function.__module__]
    before = source.LARGEST_BATCH
    source.LARGEST_BATCH = 24
    try:
        yield
    finally:
        source.LARGEST_BATCH = before


if __name__ == "__main__":
    module.INTERVAL, module.SHARE = 0.0, 0
    folder, task, after = sys.argv[1:]
    learn(Resume(Path(folder)), Killer(task, int(after), lambda: os.kill(os.getpid(), signal.SIGKILL)))
