"""A user's own file, and a shell that runs the command line in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sned.cli import main

USER_FILE = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.more = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x, kind=torch.float32):
        return self.head(self.more(self.features(x)).mean((2, 3)))


def make_model():
    torch.manual_seed(0)
    return Small()


def make_nan_model():
    model = make_model()
    nn.init.constant_(model.more[0].weight, float("nan"))
    return model


def example():
    return {"x": torch.zeros(2, 3, 8, 8)}


def batches():
    torch.manual_seed(1)
    for _ in range(2):
        yield torch.randn(16, 3, 8, 8)


def labelled():
    for inputs in batches():
        yield inputs, torch.zeros(16, dtype=torch.long)


def failing():
    yield torch.randn(16, 3, 8, 8)
    raise OSError("disk gone")


def nothing():
    return []


def accuracy(model):
    return 0.75


def broken():
    raise KeyError("no such dataset")


def stopping(model):
    raise KeyboardInterrupt


def stopped():
    raise KeyboardInterrupt


number = 3
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


Shell = Callable[..., Ended]


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_model.py"
    path.write_text(USER_FILE, encoding="utf-8")
    return path


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*words: object) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        told = capsys.readouterr()
        code = ended.value.code
        return Ended(int(code or 0), told.out, " ".join(told.err.split()))

    return run
