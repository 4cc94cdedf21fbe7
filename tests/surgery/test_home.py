"""Networks on a device that mixes with the CPU as little as a GPU does, and has no float64, as MPS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sned.errors import ModelError
from sned.surgery.home import CPU, asked_at, home_of, moved, moved_inputs, values_of
from tests.surgery import elsewhere

ROOT = Path(__file__).resolve().parents[2]
META = torch.device("meta")

CASES = [(way, name) for way, (_, names) in elsewhere.WAYS.items() for name in names]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float | str]]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "tests.surgery.elsewhere", str(tmp_path_factory.mktemp("elsewhere"))]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=240)
    if ended.returncode == elsewhere.MISSING:
        pytest.skip("this version of PyTorch knows no devices written in Python")
    assert ended.returncode == 0, ended.stderr.decode()[-3000:]
    found: dict[str, dict[str, float | str]] = json.loads(ended.stdout.decode().splitlines()[-1])
    return found


@pytest.mark.xdist_group("elsewhere")
@pytest.mark.parametrize(("way", "name"), CASES)
def test_a_network_elsewhere_becomes_what_one_on_the_cpu_does(
    told: dict[str, dict[str, float | str]], way: str, name: str
) -> None:
    difference = told[way][name]
    assert isinstance(difference, float), difference
    assert difference < 1e-5


def test_a_network_is_at_home_where_its_tensors_are() -> None:
    assert home_of(nn.Linear(2, 2)) == home_of(nn.ReLU()) == home_of(nn.Linear(2, 2, device=META)) == CPU
    whole = nn.Linear(2, 2)
    assert moved(whole, CPU) is whole
    assert values_of(nn.Linear(2, 2, device=META))["weight"].is_meta


@pytest.mark.parametrize("given", ["model.keras", nn.Linear, None])
def test_what_is_no_network_has_no_home(given: Any) -> None:
    with pytest.raises(ModelError, match=r"must be an `nn.Module` or a Keras 3 model, got"):
        home_of(given)


def test_inputs_move_in_their_containers() -> None:
    given = moved_inputs({"a": (torch.ones(2), 3)}, META)
    assert given["a"][0].is_meta
    assert given["a"][1] == 3


def test_a_measure_is_asked_about_the_network_that_is_there() -> None:
    whole = nn.Linear(2, 2)
    assert asked_at(CPU, lambda model: float(model is whole))(whole) == 1


def test_a_network_on_two_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spread:
        is_meta = False

        def __init__(self, device: str) -> None:
            self.device = torch.device(device)

    held = {"one.weight": Spread("cuda:0"), "two.weight": Spread("cuda:1")}
    monkeypatch.setattr("sned.surgery.home.state_of", lambda model: held)
    with pytest.raises(
        ModelError, match=r"on one device, got 'one.weight' on cuda:0, 'two.weight' on cuda:1"
    ):
        home_of(nn.ReLU())
