"""What is taken from a script: what a class needs, and nothing that works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from sned.errors import ModelError
from sned.surgery.keras.script import Script

TEXT = """
from __future__ import annotations
import argparse
import math as maths
import there_is_no_such_module
from dataclasses import dataclass

options = argparse.ArgumentParser().parse_args(["--nonsense"])
try:
    FACTOR = 2
except NameError:
    FACTOR = 3
TABLE = {}
TABLE["half"] = maths.floor(0.5 * 8)
model = open("trained", "w")

class Base:
    def twice(self, value: Nothing) -> int:
        model = value * FACTOR
        return model

@dataclass
class Scale(Base):
    units: int = 3

    def half(self) -> int:
        return [_later(key) for key in TABLE][0]

def _later(key: str) -> int:
    return TABLE[key]

class Needy:
    held = options.nonsense

Scale.kind = "scale"
model.write("trained")
if __name__ == "__main__":
    TABLE["half"] = None
"""


def test_a_class_comes_with_what_it_needs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "__mp_main__", raising=False)
    (tmp_path / "main.py").write_text(TEXT)
    script = Script(str(tmp_path / "main.py"))
    script.provide("Scale")
    made = script.module.Scale()
    assert (made.units, made.twice(4), made.half(), made.kind) == (3, 8, 4, "scale")
    assert not (tmp_path / "trained").exists()
    script.provide("Base")  # the same one as before
    assert issubclass(script.module.Scale, script.module.Base)
    with pytest.raises(ModelError, match=r"'Needy' is defined in the script.*SystemExit.*a file of its own"):
        script.provide("Needy")


SCRIPT = """
import keras, numpy as np, sned
from pathlib import Path

class Scale(keras.layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units, self.inner = units, keras.layers.Dense(units)
    def build(self, shape):
        self.inner.build(shape)
    def call(self, x):
        return self.inner(x) * 2
    def get_config(self):
        return {**super().get_config(), "units": self.units}

with Path("runs").open("a") as opened:
    opened.write(keras.backend.backend())
model = keras.Sequential([keras.Input((6,)), Scale(16), keras.layers.Dense(3)])
print([group.name for group in sned.trace(model, np.ones((1, 6), "float32")).groups])
"""


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="there is a child under other backends only")
def test_a_layer_of_the_script_that_runs_is_found(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(SCRIPT)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "main.py"], capture_output=True, text=True, cwd=tmp_path, env=environ, check=False
    )
    assert "['scale.dense']" in ended.stdout, ended.stderr
    assert (tmp_path / "runs").read_text() == keras.backend.backend()
