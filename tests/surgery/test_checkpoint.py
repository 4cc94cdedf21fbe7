"""A pruned network goes to disk and comes back bit for bit; a bad file gets an error and changes nothing."""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sned import Plan, apply, load, save, trace
from sned.errors import CheckpointError, ModelError, WriteError
from tests.graph.networks import NETWORKS, Residual, Tied, tokens
from tests.graph.oracle import call, halved, lively, state

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A file with half of a residual network."""
    small, *_ = halved(lively(Residual()), IMAGE)
    save(small, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON header of a safetensors file, and the bytes behind it."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(path: Path, header: dict[str, Any], rest: bytes) -> None:
    """A safetensors file of any header."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


def altered_plan(path: Path, change: Callable[[dict[str, Any]], None], *, hashed: bool = True) -> None:
    """Change the first stored plan in place, as one would who knows how the file is hashed."""
    header, rest = header_of(path)
    plans = [json.loads(text) for text in json.loads(header["__metadata__"]["plans"])]
    change(plans[0])
    text = header["__metadata__"]["plans"] = json.dumps([json.dumps(plan) for plan in plans])
    if hashed:
        header["__metadata__"]["sha256"] = hash_of(load_file(path), text + header["__metadata__"]["masks"])
    write(path, header, rest)


def hash_of(tensors: dict[str, torch.Tensor], structure: str) -> str:
    """The hash that `save` writes: plans and masks, then of each tensor its name, dtype and shape, and its bytes."""
    told = hashlib.sha256(structure.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return told.hexdigest()


def refused(path: Path, match: str = r"(small|none)\.safetensors") -> None:
    """Loading fails with one of sned's own errors, and the network that was to be filled stays as it was."""
    model = lively(Residual())
    before = copy.deepcopy(model.state_dict())
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(CheckpointError, match=match) as caught:
        load(model, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes


def test_it_comes_back_bit_for_bit(tmp_path: Path) -> None:
    small, *_ = halved(lively(Residual()), IMAGE)
    save(small, tmp_path / "a.safetensors")
    back = load(Residual().eval(), tmp_path / "a.safetensors")
    assert state(back).keys() == state(small).keys()
    assert all(torch.equal(tensor, state(small)[name]) for name, tensor in state(back).items())
    assert type(back) is Residual
    assert torch.equal(call(back, IMAGE), call(small, IMAGE))


def test_a_network_trained_after_pruning_comes_back_trained(tmp_path: Path) -> None:
    small, *_ = halved(lively(Residual()), IMAGE)
    small.train()
    small(IMAGE).sum().backward()
    torch.optim.SGD(small.parameters(), lr=0.01).step()
    small.eval()
    save(small, tmp_path / "a.safetensors")
    back = load(lively(Residual(), seed=3), tmp_path / "a.safetensors")
    assert torch.equal(call(back, IMAGE), call(small, IMAGE))
    assert back.bn.num_batches_tracked == 1


@pytest.mark.parametrize("name", ["fused_qkv", "lstm_layers_bidirectional", "channel_split", "grouped"])
def test_repaired_attributes_come_back(name: str, tmp_path: Path) -> None:
    model, inputs = NETWORKS[name]()
    small, *_ = halved(lively(model), *inputs)
    save(small, tmp_path / "a.safetensors")
    back = load(NETWORKS[name]()[0].eval(), tmp_path / "a.safetensors")
    assert torch.equal(call(back, *inputs), call(small, *inputs))


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path: Path) -> None:
    small, *_ = halved(lively(Tied()), tokens())
    save(small, tmp_path / "a.safetensors")
    header, _ = header_of(tmp_path / "a.safetensors")
    assert len([name for name in header if name.endswith("weight")]) == 2
    back = load(Tied(), tmp_path / "a.safetensors")
    assert back.head.weight is back.embed.weight


def test_two_prunings_come_back(tmp_path: Path) -> None:
    once, *_ = halved(lively(Residual()), IMAGE)
    graph = trace(once, IMAGE)
    twice = apply(once, graph.plan({"b1": [0]}))
    save(twice, tmp_path / "a.safetensors")
    back = load(Residual().eval(), tmp_path / "a.safetensors")
    assert [p.shape for p in back.parameters()] == [p.shape for p in twice.parameters()]
    assert torch.equal(call(back, IMAGE), call(twice, IMAGE))


def test_a_copy_and_a_loaded_network_can_be_saved_again(tmp_path: Path) -> None:
    small, *_ = halved(lively(Residual()), IMAGE)
    save(copy.deepcopy(small), tmp_path / "a.safetensors")
    save(load(Residual(), tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    (first, weights), (second, again) = (header_of(tmp_path / f"{name}.safetensors") for name in "ab")
    assert first == second
    assert weights == again


def test_a_dense_network_is_not_ours_to_save(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"carries no plan.*safetensors"):
        save(Residual(), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    small, *_ = halved(lively(Residual()), IMAGE)
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="No half-written file"):
        save(small, tmp_path / "file" / "a.safetensors")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "There is no file")


@pytest.mark.parametrize("keep", [0, 4, 8, 60, 0.5, 0.99])
def test_a_truncated_file(saved: Path, keep: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    refused(saved, "is damaged")


def test_a_file_of_another_kind(saved: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, saved)
    refused(saved, "is damaged")


def test_a_safetensors_file_that_sned_did_not_write(saved: Path) -> None:
    header, rest = header_of(saved)
    del header["__metadata__"]
    write(saved, header, rest)
    refused(saved, r"must be a file that this version's `sned\.save` wrote")


def test_a_format_of_the_future(saved: Path) -> None:
    header, rest = header_of(saved)
    header["__metadata__"]["format"] = "sned 99"
    write(saved, header, rest)
    refused(saved, "got 'sned 99'")


def test_altered_bytes_in_the_weights(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-5] ^= 0x40
    saved.write_bytes(bytes(data))
    refused(saved, "was altered")


@pytest.mark.parametrize("width", [6, 10])
def test_a_network_of_another_shape(saved: Path, width: int) -> None:
    class Other(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.a1, self.a2 = nn.Conv2d(8, width, 5, padding=2), nn.Conv2d(width, 8, 3, padding=1)

    model = Other()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        CheckpointError, match=r"saved from another network: .*'a1\.weight' must have shape \(6, 8, 3, 3\)"
    ):
        load(model, saved)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_network_without_that_layer(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="saved from another network"):
        load(nn.Sequential(nn.Conv2d(3, 8, 1)), saved)


def rename(header: dict[str, Any]) -> None:
    header["fc.wight"] = header.pop("fc.weight")


def reshape(header: dict[str, Any]) -> None:
    header["fc.weight"]["shape"] = header["fc.weight"]["shape"][::-1]


def retype(header: dict[str, Any]) -> None:
    header["fc.weight"]["dtype"] = "I32"


def drop(header: dict[str, Any]) -> None:
    header["__metadata__"]["plans"] = "[]"


def enlarge(header: dict[str, Any]) -> None:
    header["fc.weight"]["shape"] = [2**40, 2**20]


@pytest.mark.parametrize("change", [rename, reshape, retype, drop, enlarge])
def test_an_altered_header(saved: Path, change: Callable[[dict[str, Any]], None]) -> None:
    header, rest = header_of(saved)
    change(header)
    write(saved, header, rest)
    refused(saved)


def example(plan: dict[str, Any], tensor: list[Any]) -> None:
    """Say that the example was this tensor."""
    plan["example"]["args"] = {"tuple": [{"tensor": tensor}]}


HOSTILE: dict[str, Callable[[dict[str, Any]], None]] = {
    "no fingerprint": lambda plan: plan.pop("fingerprint"),
    "another fingerprint": lambda plan: plan.update(fingerprint="0" * 16),
    "an unknown group": lambda plan: plan["removed"].update({"__class__": [0]}),
    "an attribute name": lambda plan: plan["kept"].update({"__class__.__init__": {"0": [0]}}),
    "a path into the module": lambda plan: plan["kept"].update({"fc._parameters": {"0": [0]}}),
    "a unit that is not there": lambda plan: plan["removed"].update({"a1": [10**9]}),
    "a negative unit": lambda plan: plan["removed"].update({"a1": [-1]}),
    "a whole group": lambda plan: plan["removed"].update({"a1": list(range(6))}),
    "kept indices of another choice": lambda plan: plan["kept"]["a1.weight"].update({"0": [0, 1, 2, 3]}),
    "kept indices that repeat": lambda plan: plan["kept"]["a1.weight"].update({"0": [0, 0, 0]}),
    "kept indices out of range": lambda plan: plan["kept"]["a1.weight"].update({"0": [0, 1, 10**12]}),
    "kept indices of an axis that is not there": lambda plan: plan["kept"]["a1.weight"].update({"9": [0]}),
    "indices that are no numbers": lambda plan: plan["kept"]["a1.weight"].update({"0": ["a"]}),
    "removed as text": lambda plan: plan.update(removed="a1"),
    "shapes of text": lambda plan: plan["shapes"].update({"fc.weight": "ab"}),
    "an example of no dtype": lambda plan: example(plan, [[2, 3, 8, 8], "load", 0, 0]),
    "an example of dunder dtype": lambda plan: example(plan, [[2, 3, 8, 8], "__class__", 0, 0]),
    "no example": lambda plan: plan["example"].update(args={"tuple": []}),
    "an unknown nest": lambda plan: plan["example"].update(args={"__import__": ["os"]}),
    "a negative size": lambda plan: example(plan, [[2, 3, -8, 8], "float32", 0, 0]),
    "a plan that is a number": lambda plan: plan.update(kept=3),
    "not a number": lambda plan: plan["example"].update(batch="NaN"),
}  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_plan(saved: Path, change: Callable[[dict[str, Any]], None]) -> None:
    altered_plan(saved, change)
    refused(saved)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_a_huge_example_costs_nothing(saved: Path, dtype: str) -> None:
    altered_plan(saved, lambda plan: example(plan, [[2, 3, 10**7, 10**7], dtype, 0, 9]))
    refused(saved, match=r"claim [\d,]+ bytes, and at most 536,870,912 are made")


def test_a_plan_that_was_altered(saved: Path) -> None:
    """By someone who changed it as a whole, masks and all, and nothing else."""
    nothing = Plan.from_json(json.dumps(plans_of(saved)[0]))
    masks = {"fc.weight": np.zeros((5, 6), bool)}
    altered_plan(
        saved, lambda plan: plan.update(json.loads(replace(nothing, masks=masks).to_json())), hashed=False
    )
    refused(saved, match="was altered: its values or its plans are not those that were saved")


def plans_of(path: Path) -> list[dict[str, Any]]:
    """The plans that a file holds."""
    header, _ = header_of(path)
    return [json.loads(text) for text in json.loads(header["__metadata__"]["plans"])]


class Striding(Residual):
    """As many parameters of the same shapes under the same ops; the first convolution steps over every other place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem.stride = (2, 2)


def test_a_network_of_the_same_shapes_whose_ops_differ(saved: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"was saved from another network: .* forward pass is another one"
    ):
        load(Striding(), saved)


def test_what_cannot_be_loaded_into(saved: Path) -> None:
    for given in (None, "model", Residual):
        with pytest.raises(
            CheckpointError, match="`load` fills a fresh network of the original structure, got"
        ):
            load(given, saved)
    with pytest.raises(
        CheckpointError, match="`load` reads a file by its path, got an object of type Residual"
    ):
        load(saved, Residual())
    with torch.device("meta"):
        empty = Residual()
    with pytest.raises(ModelError, match=r"must have values here, but 'stem.weight' is on the meta device"):
        load(empty, saved)


@pytest.mark.parametrize("text", ["", "{", "3", "null", "[3]", '["{}"]', '[["a"]]', "[" * 100_000, '"abc"'])
def test_plans_that_are_none(saved: Path, text: str) -> None:
    header, rest = header_of(saved)
    header["__metadata__"]["plans"] = text
    write(saved, header, rest)
    refused(saved)


def test_no_pickle_is_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def never(*_: object, **__: object) -> None:
        raise AssertionError("pickle was read")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    monkeypatch.setattr(torch, "load", never)
    assert load(Residual(), saved).fc.weight.shape == (5, 6)
