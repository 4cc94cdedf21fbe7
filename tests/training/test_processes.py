"""Two processes that share every batch: the same network as one process makes, in both of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sned
from sned.surgery.masks import hold_masks
from tests.training.networks import digits

pytest.importorskip("accelerate")

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import atexit
import os
import sys
from pathlib import Path

import torch

import sned
from tests.training.test_processes import GIVEN, masked_net
from tests.training.networks import digits

torch.set_num_threads(1)
import torch.distributed as dist
out = Path(sys.argv[1])


def threads():  # what is registered before training runs after what training registers
    names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    (out / f"threads-{os.environ['RANK']}.txt").write_text("".join(names))


atexit.register(threads)
tuned = sned.finetune(masked_net(), digits(0, 640), validation=digits(640, 801), folder=out / "run", **GIVEN)
dense = masked_net()
small = sned.apply(dense, sned.plan(sned.trace(dense, digits(0, 2)[0]), sparsity=0.5))
taught = sned.finetune(small, digits(0, 640), teacher=dense, distillation={"relations": 1.0}, **GIVEN)
torch.save({"state": taught.model.state_dict(), "terms": taught.history[-1].terms}, out / f"taught-{dist.get_rank()}.pt")
state = {"state": tuned.model.state_dict(), "history": [(e.loss, e.metric) for e in tuned.history]}
torch.save({**state, "world": dist.get_world_size(), "backend": dist.get_backend()}, out / f"{dist.get_rank()}.pt")
"""

GIVEN = {"epochs": 3, "batch_size": 64, "learning_rate": 0.1, "device": "cpu", "save_every": 7}


def masked_net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    hold_masks(model, {"1.weight": torch.rand(24, 64) > 0.5})
    return model


def in_two_processes(script: Path, *words: str) -> str:
    """Run a script by `torchrun`; returns what it printed on standard output."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--", str(script), *words]
    ended = subprocess.run(
        [sys.executable, *launch], cwd=ROOT, env=environment, capture_output=True, timeout=180
    )
    assert ended.returncode == 0, ended.stderr.decode()[-3000:]
    return ended.stdout.decode()


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    in_two_processes(script, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert (first["world"], first["backend"]) == (2, "gloo")
    assert all(torch.equal(value, second["state"][name]) for name, value in first["state"].items())
    alone = sned.finetune(masked_net(), digits(0, 640), validation=digits(640, 801), **GIVEN)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(first["state"][name], value, atol=1e-5, rtol=1e-4)
    for (loss, metric), epoch in zip(first["history"], alone.history, strict=True):
        assert loss == pytest.approx(epoch.loss, rel=1e-5)
        assert metric == pytest.approx(epoch.metric, abs=1 / 161 + 1e-9)
    left = [(tmp_path / f"threads-{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1)]
    assert not any("gloo" in names for names in left), "the processes have not left their group"
    first, second = (torch.load(tmp_path / f"taught-{rank}.pt") for rank in (0, 1))
    assert set(first["terms"]) == {"labels", "logits", "relations"}
    assert first["terms"] == second["terms"]
    assert all(torch.equal(value, second["state"][name]) for name, value in first["state"].items())


def test_the_command_line_writes_and_tells_once(tmp_path: Path) -> None:
    script, out, log = (tmp_path / name for name in ("shell.py", "tuned.safetensors", "log.csv"))
    script.write_text(
        "from sned.cli import main\n\nif __name__ == '__main__':\n    main()\n", encoding="utf-8"
    )
    own = "tests.training"
    told = in_two_processes(
        script, "finetune", f"{own}.test_processes:masked_net", "-d", f"{own}.networks:digits", "--validation", "0.2",
        "--epochs", "2", "--teacher", f"{own}.networks:digit_net", "--log", str(log), "-o", str(out), "--json",
    )  # fmt: skip
    assert [epoch["epoch"] for epoch in json.loads(told)["epochs"]] == [1, 2]
    assert len(log.read_text(encoding="utf-8").splitlines()) == 3
    assert out.is_file()
