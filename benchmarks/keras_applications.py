"""Every family of keras.applications at 50 %: pruned correctly, exact where it can be, and loaded again by Keras alone.

    KERAS_BACKEND=torch python -m benchmarks.keras_applications [NAME ...] [--sparsity 0.5] [--out FILE]

The smallest model of each family, with random weights and the smallest input that it takes. "difference" is the pruned
model beside the dense one with the removed slices set to zero, over the largest output; it is taken with the groups
alone that no normalisation, mean or softmax spans. "reload" is the pruned model beside what a fresh process without
sned loads from its file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import sned
from sned.errors import SnedError
from sned.graph import Graph, Plan
from sned.report import environment
from sned.surgery.keras.naming import variables_of

FAMILIES = {
    "ConvNeXtTiny": 32, "DenseNet121": 32, "EfficientNetB0": 32, "EfficientNetV2B0": 32, "InceptionResNetV2": 75,
    "InceptionV3": 75, "MobileNet": 32, "MobileNetV2": 32, "MobileNetV3Small": 32, "NASNetMobile": 32,
    "ResNet50": 32, "ResNet50V2": 32, "VGG16": 32, "Xception": 71,
}  # fmt: skip
"""The smallest model of each family, and the smallest input."""

LOADED = """
import sys, keras, numpy
model = keras.saving.load_model(sys.argv[1])
assert not any(name.partition(".")[0] == "sned" for name in sys.modules)
numpy.save(sys.argv[3], keras.ops.convert_to_numpy(model(keras.ops.convert_to_tensor(numpy.load(sys.argv[2])))))
"""


@dataclass(frozen=True)
class Row:
    """What became of one family."""

    name: str
    groups: int = 0
    exact: int = 0
    units: int = 0
    removed: int = 0
    before: int = 0
    after: int = 0
    difference: float | None = None
    reload: float | None = None
    trace_s: float = 0.0
    apply_s: float = 0.0
    failure: str = ""


def model_of(name: str, size: int) -> Any:
    """A model with random weights, normalisations included."""
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=10)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if len(variable.shape) == 1:
            positive = "gamma" in variable.name or "variance" in variable.name
            value = (
                rng.uniform(0.5, 1.5, variable.shape)
                if positive
                else 0.1 * rng.standard_normal(variable.shape)
            )
            variable.assign(value)
    return model


def answers(model: Any, given: NDArray[np.float32]) -> NDArray[Any]:
    """What a model returns."""
    return np.asarray(keras.ops.convert_to_numpy(model(keras.ops.convert_to_tensor(given), training=False)))


def relative(mine: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(mine - theirs).max() / max(np.abs(theirs).max(), 1e-6))


def zeroed(model: Any, graph: Graph, plan: Plan) -> None:
    """Set what a plan removes to zero, in place."""
    variables = {held.path: held.variable for held in variables_of(model)}
    for group in graph.groups:
        for part in group.slices if group.name in plan.removed else ():
            variable = variables[part.parameter]
            value = np.array(keras.ops.convert_to_numpy(variable.value))
            index: list[Any] = [slice(None)] * value.ndim
            index[part.axis] = part.positions[list(plan.removed[group.name])].ravel()
            value[tuple(index)] = 0
            variable.assign(value)


def reloaded(model: Any, given: NDArray[np.float32]) -> NDArray[Any]:
    """What a process without sned gets from the saved model."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model.save(folder / "small.keras")
        np.save(folder / "given.npy", given)
        files = [str(folder / name) for name in ("small.keras", "given.npy", "made.npy")]
        environ = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
        subprocess.run([sys.executable, "-c", LOADED, *files], check=True, env=environ, cwd=folder)
        return np.asarray(np.load(folder / "made.npy"))


def row_of(name: str, sparsity: float) -> Row:
    """Prune one family, and hold it against what is known to be right."""
    try:
        model = model_of(name, FAMILIES[name])
    except ValueError as error:
        return Row(name, failure=f"not made by Keras on this backend: {str(error).splitlines()[0][:80]}")
    given = (
        np.random.default_rng(1).standard_normal((2, FAMILIES[name], FAMILIES[name], 3)).astype(np.float32)
    )
    try:
        start = time.perf_counter()
        graph = sned.trace(model, given)
        traced = time.perf_counter()
        plan = sned.plan(graph, sparsity=sparsity)
        planned = time.perf_counter()
        small = sned.apply(model, plan)
        applied = time.perf_counter()
        exact = {group.name for group in graph.groups if group.exact}
        only_exact = graph.plan({group: units for group, units in plan.removed.items() if group in exact})
        cut = small if only_exact.removed == plan.removed else sned.apply(model, only_exact)
        mine = answers(cut, given)
        before, after = model.count_params(), small.count_params()
        again = relative(reloaded(small, given), answers(small, given))
        zeroed(model, graph, only_exact)
        return Row(
            name,
            groups=len(graph.groups),
            exact=len(exact),
            units=sum(group.size for group in graph.groups),
            removed=sum(map(len, plan.removed.values())),
            before=before,
            after=after,
            difference=relative(mine, answers(model, given)),
            reload=again,
            trace_s=traced - start,
            apply_s=applied - planned,
        )
    except (SnedError, subprocess.CalledProcessError) as error:
        return Row(name, failure=str(error)[:200])


def rows(names: list[str], sparsity: float) -> Iterator[Row]:
    """One row a family, printed as it comes."""
    for name in names:
        row = row_of(name, sparsity)
        print(row, flush=True)
        yield row


def main() -> None:
    """Print the table, and write it as JSON where `--out` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(FAMILIES), help="families; all of them by default")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    found = list(rows(options.names, options.sparsity))
    where = environment()
    table = Table(
        title=f"keras.applications, {options.sparsity:.0%} of every group; {keras.backend.backend()} backend"
    )
    for column in ("", "groups (exact)", "units", "parameters", "difference", "reload", "trace s", "apply s"):
        table.add_column(column)
    for row in found:
        if row.failure:
            table.add_row(row.name, row.failure)
            continue
        table.add_row(
            row.name,
            f"{row.groups} ({row.exact})",
            f"{row.units} - {row.removed}",
            f"{row.before:,} → {row.after:,}",
            f"{row.difference:.1g}",
            f"{row.reload:.1g}",
            f"{row.trace_s:.1f}",
            f"{row.apply_s:.1f}",
        )
    Console(width=150).print(table)
    if options.out:
        options.out.write_text(
            json.dumps({"environment": asdict(where), "rows": [asdict(row) for row in found]}, indent=1)
        )


if __name__ == "__main__":
    main()
