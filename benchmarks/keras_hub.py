"""Small networks of KerasHub with random weights, cut to half of every group: what of them can go, and why not more.

    KERAS_BACKEND=torch python -m benchmarks.keras_hub [NAME ...] [--sparsity 0.5]

Needs `pip install keras-hub`, and nothing from the network. "left" is the share of the parameters that stay, as the
class of the network can say it, and "by layer" the same for `keras.Model(model.inputs, model.output)`, in which each
layer has a configuration of its own. "difference" is the pruned network beside the dense one with the removed slices
set to zero, with the groups alone that no normalisation, mean or softmax spans.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections import Counter
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import sned
from benchmarks.keras_applications import relative, zeroed
from sned.errors import SnedError

TEXT = {"vocabulary_size": 60, "num_layers": 2, "hidden_dim": 32, "intermediate_dim": 64}
HEADS = {**TEXT, "num_heads": 4}
PLACES = {**HEADS, "max_sequence_length": 16}
QUERIES = {**TEXT, "num_query_heads": 4, "num_key_value_heads": 2}
IMAGE = {"image_shape": (32, 32, 3)}
PATCHES = {**IMAGE, "num_layers": 2, "num_heads": 4, "hidden_dim": 32}
STACKS: dict[str, Any] = {
    **IMAGE, "input_conv_filters": [64], "input_conv_kernel_sizes": [3], "stackwise_num_filters": [64, 32],
    "stackwise_num_blocks": [1, 2], "stackwise_num_strides": [1, 2],
}  # fmt: skip

BACKBONES: dict[str, dict[str, Any]] = {
    "Albert": {**PLACES, "embedding_dim": 16}, "Bart": PLACES, "Bert": PLACES, "Bloom": HEADS,
    "DebertaV3": {**PLACES, "bucket_size": 8}, "DistilBert": PLACES, "Gemma": {**QUERIES, "head_dim": 8},
    "GPT2": PLACES, "Llama": QUERIES, "Mistral": QUERIES, "OPT": PLACES, "Roberta": PLACES, "T5": HEADS,
    "DeiT": {**PATCHES, "patch_size": 8, "intermediate_dim": 64},
    "DenseNet": {**IMAGE, "stackwise_num_repeats": [2, 2], "growth_rate": 16},
    "ResNet": {**STACKS, "block_type": "bottleneck_block"},
    "VGG": {**IMAGE, "stackwise_num_repeats": [1, 2], "stackwise_num_filters": [16, 32]},
    "ViT": {**PATCHES, "patch_size": (8, 8), "mlp_dim": 64},
}  # fmt: skip
"""Classes `…Backbone`, and what they are made of."""

TASKS = {
    "BartSeq2SeqLM": "Bart", "BertTextClassifier": "Bert", "GPT2CausalLM": "GPT2", "LlamaCausalLM": "Llama",
    "ResNetImageClassifier": "ResNet", "ViTImageClassifier": "ViT",
}  # fmt: skip
"""Classes of tasks, and the backbone of each."""


def model_of(name: str) -> Any:
    """A network with random weights."""
    models = importlib.import_module("keras_hub.models")
    keras.utils.set_random_seed(0)
    if name in BACKBONES:
        return getattr(models, f"{name}Backbone")(**BACKBONES[name])
    classes = {"num_classes": 10} if name.endswith("Classifier") else {}
    return getattr(models, name)(backbone=model_of(TASKS[name]), preprocessor=None, **classes)


def inputs_of(model: Any) -> Any:
    """Images, or ids of words with their masks."""
    rng = np.random.default_rng(1)
    given = {
        one.name: rng.integers(1, 60, (2, 12)).astype("int32")
        if "token" in one.name
        else np.array([[int("mask" in one.name)] * 12] * 2, "int32")
        for one in model.inputs
        if len(one.shape) == 2
    }
    return given or rng.standard_normal((2, *model.inputs[0].shape[1:])).astype("float32")


def halved(model: Any, sparsity: float) -> tuple[str, str, str]:
    """The share of the parameters that is left, the difference, and the most frequent reason why the rest stays."""
    given = inputs_of(model)
    try:
        graph = sned.trace(model, given)
        why = Counter(frozen.reason for frozen in graph.frozen).most_common(1)
        plan = sned.plan(graph, sparsity=sparsity)
        small = sned.apply(model, plan)
        exact = {group.name for group in graph.groups if group.exact}
        cut = graph.plan({name: units for name, units in plan.removed.items() if name in exact})
        mine = answers(sned.apply(model, cut), given)
    except SnedError as error:
        return "", "", str(error).splitlines()[0][:120]
    left = small.count_params() / model.count_params()
    zeroed(model, graph, cut)
    found = max(relative(a, b) for a, b in zip(mine, answers(model, given), strict=True))
    return f"{left:.0%}", f"{found:.1g}", "".join(f"{count} × {reason}" for reason, count in why)


def answers(model: Any, given: Any) -> list[Any]:
    """What a network returns."""
    tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, given)
    return [keras.ops.convert_to_numpy(t) for t in keras.tree.flatten(model(tensors, training=False))]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names", nargs="*", default=[*BACKBONES, *TASKS], help="networks; all of them by default"
    )
    parser.add_argument("--sparsity", type=float, default=0.5)
    options = parser.parse_args()
    if importlib.util.find_spec("keras_hub") is None:
        raise SystemExit("KerasHub is not installed: `pip install keras-hub`.")
    table = Table("", "left", "by layer", "difference", "what stays, mostly")
    for name in options.names:
        model = model_of(name)
        inputs = (
            {one.name: one for one in model.inputs} if isinstance(inputs_of(model), dict) else model.inputs
        )
        apart, _, _ = halved(keras.Model(inputs, model.output), options.sparsity)
        left, difference, why = halved(model, options.sparsity)
        table.add_row(name, left, apart, difference, why)
        print(name, left, apart, difference, why, flush=True)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
