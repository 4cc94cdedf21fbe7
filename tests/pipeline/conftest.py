"""Nothing that is measured here is kept, and nothing hangs on a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from sned.export import Exported
from sned.export.calls import call_of
from sned.export.capture import Subject
from sned.export.parity import Parity
from sned.pipeline.study import Study
from sned.timing import Latency


@pytest.fixture(autouse=True)
def made_up_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked here hangs on no runtime: every file holds the weights, and every run takes a millisecond."""

    def export(model: nn.Module, example: Tensor, path: Path) -> Exported:
        size = 4 * sum(p.numel() for p in model.parameters())
        call = call_of(Subject(model), example)
        return Exported(path, size, ("x",), ("y",), True, "", Parity(0.0, 0.0, 1.0, 1), (1,), call=call)

    def measure(
        study: Study, after: Exported | None = None, runs: int = 1, clock: Any = None
    ) -> dict[str, Latency]:
        return dict.fromkeys(("before", "after"), Latency(1.0, 1.0, 1.0, runs, 1))

    for module in ("study", "choice", "road"):
        monkeypatch.setattr(f"sned.pipeline.{module}.measure", measure)
        monkeypatch.setattr(f"sned.pipeline.{module}.export_onnx", export)
