"""What a phone's networks gain in the file: MobileNetV2's shape in int8, MobileNetV1's with 90 % zeros.

    python -m benchmarks.export_mobile [--latency] [--sparse] [--multiple 16]

`--latency`: at 224 px, dense against pruned to half its MACs, fp32 and int8, in ONNX Runtime, in one run; widths are
multiples of `--multiple`, which is what the kernels work in. `--sparse`: as `.tflite`, size, and time here and with AVX
hidden (`tools/hide_avx.c`), where XNNPACK has sparse kernels on x86; and int8 linear layers in OpenVINO, which unpacks
sparse weights where there is AMX. Weights are random: time and size only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sned.timing import SETTLE_MS, Latency, interleaved

HIDE = Path(__file__).parent.parent / "tools" / "hide_avx.c"


def latency(folder: Path, multiple: int) -> None:
    """Dense and pruned, fp32 and int8."""
    import torch

    import sned
    from benchmarks.mobile import mobilenet_v2
    from sned.export import feeds
    from sned.measure import measure_onnx

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dense, x = mobilenet_v2(), torch.randn(1, 3, 224, 224)
    plan = sned.plan(
        sned.trace(dense, x),
        budget=sned.Budget(macs="50%"),
        search_by="uniform",
        rules={"multiple_of": {"*": multiple}},
    )
    files = {
        f"{name}, {precision or 'fp32'}": sned.export(
            model,
            x,
            quantize=precision,
            calibration=[torch.randn(8, 3, 224, 224)],
            out=folder / f"{name}-{precision}.onnx",
            runs=0,
        )
        for name, model in (("dense", dense), ("pruned", sned.apply(dense, plan)))
        for precision in (None, "int8")
    }
    paths = {name: file.path for name, file in files.items()}
    timed = measure_onnx(paths, feeds(files["dense, fp32"], x), runs=100, max_seconds=60)
    sizes = {name: file.size_bytes for name, file in files.items()}
    show(f"MobileNetV2's shape, 224 px, multiples of {multiple}", timed, sizes)


def sparse(folder: Path) -> None:
    """Dense and 90 % zeros, on this processor as it is and with AVX hidden."""
    import torch

    import sned
    from benchmarks.mobile import mobilenet_v1

    torch.set_num_threads(1)
    sizes: dict[str, int] = {}
    paths = {"dense": folder / "dense.tflite", "90 % zeros": folder / "sparse.tflite"}
    for (name, path), share in zip(paths.items(), (0.0, 0.9), strict=True):
        torch.manual_seed(0)
        made = sned.export(
            mobilenet_v1(sparsity=share), torch.randn(1, 3, 224, 224), to="litert", out=path, runs=0
        )
        sizes[name] = made.size_bytes
        print(f"{name}: {made.max_abs_diff:.1e} from PyTorch; {' '.join(made.notes)}", flush=True)
    show("MobileNetV1's shape, as it is here", in_a_process(paths, {}), sizes)
    library = folder / "hide_avx.so"
    try:
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, HIDE], check=True)
        hidden = in_a_process(paths, {"LD_PRELOAD": str(library)})
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"AVX could not be hidden here, so the sparse path was not shown: {error}")
        return
    show("MobileNetV1's shape, AVX hidden", hidden, sizes)


def linear(folder: Path) -> None:
    """Four int8 linear layers of 2048 × 2048 in OpenVINO, one row, at several shares of zeros."""
    import torch
    from torch import nn

    import sned

    x, sizes, calls = torch.randn(1, 2048), {}, {}
    for share in (0.0, 0.8, 0.9, 0.95):
        torch.manual_seed(0)
        layers = [nn.Linear(2048, 2048) for _ in range(4)]
        for layer in layers:
            layer.weight.data *= torch.rand(2048, 2048) >= share
        model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU(), nn.LayerNorm(2048))))
        made = sned.export(
            model,
            x,
            to="openvino",
            quantize="int8",
            calibration=[torch.randn(64, 2048)],
            out=folder / f"{share}.xml",
            runs=0,
        )
        sizes[f"{share:.0%} zeros"] = made.size_bytes
        calls[f"{share:.0%} zeros"] = partial(made.session().run, [x.numpy()])
    timed = interleaved(calls, runs=300, settle_ms=SETTLE_MS, max_seconds=30)
    show("Four int8 linear layers, OpenVINO", timed, sizes)


def in_a_process(paths: dict[str, Path], settings: dict[str, str]) -> dict[str, Latency]:
    """Time `.tflite` files turn and turn about in a process of their own."""
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.export_mobile", "--time", *paths.values()],
        env={**os.environ, **settings},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return {name: Latency(**one) for name, one in zip(paths, json.loads(told.splitlines()[-1]), strict=True)}


def time(paths: Sequence[Path]) -> None:
    """Print the latencies of `.tflite` files as JSON."""
    from ai_edge_litert.interpreter import Interpreter

    opened = [Interpreter(model_path=str(path), num_threads=1) for path in paths]
    for one in opened:
        one.allocate_tensors()
        [entering] = one.get_input_details()
        image = np.random.default_rng(0).standard_normal(entering["shape"]).astype(np.float32)
        one.set_tensor(entering["index"], image)
    calls = {str(place): partial(one.invoke) for place, one in enumerate(opened)}
    timed = interleaved(calls, runs=40, settle_ms=SETTLE_MS, max_seconds=40)
    print(json.dumps([vars(one) for one in timed.values()]))


def show(title: str, timed: dict[str, Latency], sizes: dict[str, int]) -> None:
    """Each file beside the first: at the median, and at the 10th percentile, which a busy machine moves less."""
    first, size = next(iter(timed.values())), next(iter(sizes.values()))
    print(title)
    for name, one in timed.items():
        ratios = f"x{one.median_ms / first.median_ms:.3f} (p10 x{one.p10_ms / first.p10_ms:.3f})"
        print(
            f"  {name:14} {one.median_ms:8.2f} ms  {ratios}  {sizes[name]:>11,} B  x{sizes[name] / size:.3f}"
        )


def main() -> None:
    """Print what is asked for, or both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("--multiple", type=int, default=16)
    parser.add_argument("--time", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.time:
        time(options.time)
        return
    from sned.export import find_target, installed  # not where AVX is hidden: it brings PyTorch

    with tempfile.TemporaryDirectory() as name:
        if options.latency or not options.sparse:
            latency(Path(name), options.multiple)
        if options.sparse or not options.latency:
            sparse(Path(name))
            if installed(find_target("openvino")):
                linear(Path(name))


if __name__ == "__main__":
    main()
