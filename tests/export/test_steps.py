from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._decomp import decompositions

from sned.export.capture import Subject


def noted(calls: list[str], name: str) -> Callable[..., Any]:
    """A function of PyTorch's that leaves its name at each call."""
    original = vars(decompositions)[name]

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(*args, **kwargs)

    return called


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_shapes_of_recurrent_layers_take_one_step(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells: list[str] = []
    for name in ("lstm_cell", "gru_cell"):
        monkeypatch.setattr(decompositions, name, noted(cells, name))
    layer = kind(4, 5, bidirectional=True, batch_first=True)
    captured = Subject(layer).capture(torch.randn(2, 30, 4), dynamic_batch=True)
    assert len(cells) < 30
    given = torch.randn(3, 30, 4)
    torch.testing.assert_close(captured.program.module()(given)[0], layer(given)[0])
