"""What a LiteRT file holds: no operation that only moves an image about, and nothing twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sned.export import export

pytest.importorskip("litert_torch")
IMAGES = [torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, channels, height, width = x.shape
    return x.view(n, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


class Shuffling(nn.Module):
    """Channel shuffles between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.first, self.second = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 12, 1)
        self.third, self.head = nn.Conv2d(12, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = shuffled(torch.relu(self.first(x)), 2)
        x = shuffled(torch.relu(self.second(x)), 3)
        made: Tensor = self.head(self.third(x).mean((2, 3)))
        return made


class Rows(Shuffling):
    """Mixes the channels with the rows of an image, which is something else."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x.view(len(x), 12, 3, 4, 12).transpose(1, 2).reshape(x.shape)
        made: Tensor = self.head(self.third(x).mean((2, 3)))
        return made


def read(path: Path) -> tuple[Any, Any, Counter[str]]:
    from ai_edge_litert.tools import flatbuffer_utils as flatbuffer

    from sned.export.litert_file import called

    model = flatbuffer.read_model(str(path))
    (graph,) = model.subgraphs
    return model, graph, Counter(called(model, op) for op in graph.operators)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_channel_shuffle_is_one_transposition(tmp_path: Path, quantize: str | None) -> None:
    torch.manual_seed(0)
    path = tmp_path / "shuffling.tflite"
    made = export(
        Shuffling().eval(),
        IMAGES[0][:1],
        to="litert",
        quantize=quantize,
        calibration=IMAGES,
        out=path,
        runs=1,
    )
    assert made.parity.error < (0.1 if quantize else 1e-5)  # of the file as it is on disk
    _, _, kinds = read(path)
    assert kinds["TRANSPOSE"] == 2


def test_what_only_looks_like_a_shuffle_stays_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "rows.tflite"
    made = export(Rows().eval(), IMAGES[0][:1], to="litert", calibration=IMAGES, out=path, runs=1)
    assert made.parity.error < 1e-5
    assert read(path)[2]["TRANSPOSE"] == 3


def test_nothing_is_held_twice_or_unread(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "shuffling.tflite"
    export(
        Shuffling().eval(), IMAGES[0][:1], to="litert", quantize="int8", calibration=IMAGES, out=path, runs=1
    )
    model, graph, _ = read(path)
    read_or_made = {int(p) for op in graph.operators for p in (*op.inputs, *op.outputs)}
    assert read_or_made | set(map(int, graph.inputs)) == set(range(len(graph.tensors)))
    whole = [t for t in graph.tensors if not t.name]
    held = [(tuple(t.shape), bytes(model.buffers[t.buffer].data)) for t in whole]
    assert len(held) == len(set(held)) > 2
    used = {t.buffer for t in graph.tensors} | {entry.buffer for entry in model.metadata}
    assert all(
        b.data is None or not len(b.data) for place, b in enumerate(model.buffers) if place not in used
    )


class Tied(nn.Module):
    """The table of a language model is its last layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(500, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 500, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.layer(self.table(ids))))


class Named(nn.Module):
    """Scores and the class of the largest, which the quantiser leaves in floats."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.body(x)
        return {"scores": scores, "class": scores.argmax(1)}


def test_an_output_in_8_bits_that_is_read_in_floats_comes_out_all_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Named().eval(), torch.randn(32, 6)
    made = export(
        model, x[:1], to="litert", quantize="int8", calibration=[x], out=tmp_path / "m.tflite", runs=0
    )
    scores, best = made.module()(x)
    torch.testing.assert_close(scores, model(x)["scores"], atol=0.05, rtol=0)
    assert torch.equal(best, scores.argmax(1))


def test_a_table_is_held_in_8_bits_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = Tied().eval(), tmp_path / "tied.tflite"
    ids = torch.randint(0, 500, (64, 8))
    made = export(model, ids[:1], to="litert", quantize="int8", calibration=[ids], out=path, runs=0)
    held = [len(buffer.data) for buffer in read(path)[0].buffers if buffer.data is not None]
    assert sum(size >= 500 * 32 for size in held) == 1
    assert max(held) == 500 * 32
    unseen = torch.randint(0, 500, (8, 8))
    with torch.no_grad():
        expected, got = model(unseen), made.module()(unseen)
    assert float((got - expected).norm() / expected.norm()) < 0.05
