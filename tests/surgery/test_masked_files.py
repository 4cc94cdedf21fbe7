"""A file says which masks a network holds, whatever its plans say."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sned import apply, load, save, trace
from sned.surgery.masks import burn_in, hold_masks, masks_of, with_masks_of
from tests.graph.networks import Residual
from tests.graph.oracle import call, halved, lively
from tests.surgery.test_checkpoint import IMAGE, hash_of, header_of, refused, write


def masked_by_plan() -> tuple[nn.Module, torch.Tensor]:
    """A network whose plan masks half of its last weight, and that mask."""
    model = lively(Residual())
    graph = trace(model, IMAGE)
    mask = torch.rand(model.fc.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    return apply(model, replace(graph.plan({}), masks={"fc.weight": mask.numpy()})), mask


def test_masks_that_no_plan_names_come_back(tmp_path: Path) -> None:
    small, mask = masked_by_plan()
    more, other = mask & mask.flip(0), torch.eye(*small.stem.weight.shape[:2]).bool()
    other = other[..., None, None].expand_as(small.stem.weight)
    hold_masks(small, {"fc.weight": more, "stem.weight": other})
    save(small, tmp_path / "a.safetensors")
    back = load(Residual(), tmp_path / "a.safetensors")
    held = masks_of(back)
    assert held.keys() == {"fc.weight", "stem.weight"}
    assert torch.equal(held["fc.weight"], more)
    assert torch.equal(held["stem.weight"], other)
    back.train()
    back(IMAGE).sum().backward()
    torch.optim.SGD(back.parameters(), lr=0.1).step()
    assert not bool(back.fc.weight[~more].any() or back.stem.weight[~other].any())


def test_masks_of_a_plan_are_written_once(tmp_path: Path) -> None:
    save(masked_by_plan()[0], tmp_path / "a.safetensors")
    assert header_of(tmp_path / "a.safetensors")[0]["__metadata__"]["masks"] == '{"fc.weight": null}'


@pytest.mark.parametrize("trainable", [True, False])
def test_masks_that_were_burnt_in_stay_so(tmp_path: Path, trainable: bool) -> None:
    small, mask = masked_by_plan()
    with torch.no_grad():
        burn_in(small).fc.weight += 0.3  # further training fills the zeros
    save(small, tmp_path / "a.safetensors")
    back = load(Residual().requires_grad_(trainable), tmp_path / "a.safetensors").eval()
    assert masks_of(back) == {}
    assert torch.equal(call(copy.deepcopy(back), IMAGE), call(small, IMAGE))
    assert bool(back.fc.weight[~mask].all())


def test_a_file_that_does_not_tell_its_masks_has_those_of_its_plans(tmp_path: Path) -> None:
    small, mask = masked_by_plan()
    save(small, tmp_path / "a.safetensors")
    header, rest = header_of(tmp_path / "a.safetensors")
    told = header["__metadata__"]
    del told["masks"]
    told["sha256"] = hash_of(load_file(tmp_path / "a.safetensors"), told["plans"])
    write(tmp_path / "a.safetensors", header, rest)
    assert torch.equal(masks_of(load(Residual(), tmp_path / "a.safetensors"))["fc.weight"], mask)


def halved_file(folder: Path) -> Path:
    """A file with half of a network that holds no masks."""
    save(halved(lively(Residual()), IMAGE)[0], folder / "small.safetensors")
    return folder / "small.safetensors"


def with_masks(path: Path, text: str) -> None:
    """Put other masks into a file, as one would who knows how it is hashed."""
    header, rest = header_of(path)
    told = header["__metadata__"]
    told["masks"] = text
    told["sha256"] = hash_of(load_file(path), told["plans"] + text)
    write(path, header, rest)


@pytest.mark.parametrize("text", ["{", "3", "[3]", '{"fc.weight": null}', '{"fc.weight": {"shape": [5, 6]}}'])
def test_masks_that_are_none(tmp_path: Path, text: str) -> None:
    path = halved_file(tmp_path)
    with_masks(path, text)
    refused(path, "is damaged")


def test_masks_of_another_network(tmp_path: Path) -> None:
    path = halved_file(tmp_path)
    with_masks(path, json.dumps({"fc.wait": {"shape": [2], "bits": "AA=="}}))
    refused(path, r"cannot be put into this network: .*'fc\.wait'")


class Unread(Residual):
    """Has a layer that no pass reads."""

    def __init__(self) -> None:
        super().__init__()
        self.unread = nn.Linear(7, 9)


def test_masks_of_what_no_pass_reads_are_kept_in_files_alone(tmp_path: Path) -> None:
    model, mask = lively(Unread()), torch.eye(9, 7).bool()
    hold_masks(model, {"unread.weight": mask})
    plan = with_masks_of(model, trace(model, IMAGE).plan({"a1": [0]}))
    assert plan.masks == {}
    save(apply(model, plan), tmp_path / "small.safetensors")
    assert torch.equal(masks_of(load(Unread(), tmp_path / "small.safetensors"))["unread.weight"], mask)
