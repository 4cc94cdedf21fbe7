import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sned.version import __version__
from tests.cli.conftest import Shell

COMMANDS = ("prune", "sparsify", "inspect", "measure", "export", "demo")


def test_help_does_not_wait_for_pytorch() -> None:
    program = (
        "import sys\n"
        "from sned.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as ended:\n    assert ended.code == 0, ended.code\n"
        "slow = {'torch', 'onnx', 'onnxruntime', 'numpy', 'matplotlib', 'pydantic'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert all(command in ended.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "devices list", "devices show"])
def test_every_help_teaches_with_an_example(shell: Shell, command: str) -> None:
    ended = shell(*command.split(), "--help")
    assert ended.code == 0
    assert re.search(rf"Examples?:\s+sned {command} ?", ended.out)


def test_the_version_is_the_one_written(shell: Shell) -> None:
    ended = shell("--version")
    assert (ended.code, ended.out.strip()) == (0, f"sned {__version__}")


def test_an_error_is_one_paragraph_and_debug_anywhere_adds_the_traceback(
    shell: Shell, tmp_path: Path
) -> None:
    command = ("measure", tmp_path / "absent.onnx")
    plain = shell(*command)
    assert plain.code == 2
    assert plain.out == ""
    assert re.fullmatch(
        r"Error: There is no file '.*absent\.onnx'\. Give the path of an ONNX file\.", plain.err
    )
    for words in ((*command, "--debug"), ("--debug", *command)):
        debug = shell(*words)
        assert debug.code == 2
        assert re.search(r"Traceback .*NotFoundError: There is no file", debug.err)


def test_a_wrong_option_ends_with_2(shell: Shell) -> None:
    ended = shell("inspect", "model.py:make", "--exmaple", "1,3")
    assert ended.code == 2
    assert "--exmaple" in ended.err


def test_a_fault_of_ours_says_so(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("sned.devices.list_devices", fail)
    ended = shell("devices", "list")
    assert ended.code == 1
    assert re.search(r"sned itself failed: ZeroDivisionError: division by zero\. Please report", ended.err)


def test_devices_are_listed_and_shown(shell: Shell) -> None:
    listed = shell("devices", "list")
    assert listed.code == 0
    assert "host" in listed.out
    names = [device["name"] for device in json.loads(shell("devices", "list", "--json").out)]
    assert {"host", "pixel-9", "phones-2026"} <= set(names)
    shown = shell("devices", "show", "host")
    assert "read from this machine" in shown.out
    assert json.loads(shell("devices", "show", "HOST", "--json").out)["runtimes"] == ["onnxruntime"]
    phone = shell("devices", "show", "pixel-9").out
    assert re.search(r"Cortex-X4, 3\.1 GHz", phone)
    assert "memory_bandwidth_gb_s │ not known" in phone
    assert "its memory bandwidth is not known, 30 GB/s assumed" in phone
    members = json.loads(shell("devices", "show", "samsung-iphone-2026", "--json").out)
    assert [device["name"] for device in members] == ["galaxy-s26", "galaxy-s26-snapdragon", "iphone-17"]


def test_a_device_that_is_not_there_lists_close_names(shell: Shell) -> None:
    ended = shell("devices", "show", "hots")
    assert ended.code == 2
    assert re.search(r"There is no device 'hots' in the catalogue\. Did you mean 'host'\?", ended.err)
