"""Profiles: the catalogue, what is checked, and what this machine says of itself."""

from pathlib import Path

import pytest

from sned.devices import find_device, find_devices, list_devices, list_sets, read_device
from sned.devices.profile import FIGURES, Device, find_one, parse_device
from sned.errors import DeviceError

BOARD = """
name = "board-1"
title = "A board"
kind = "board"
runtimes = ["onnxruntime"]
processor = "Four small cores"
simd = ["asimd"]
memory_bytes = 1000000000
memory_bandwidth_gb_s = 4.5
clusters = [{count = 4, name = "Cortex-A53", clock_ghz = 1.2, simd_bits = 128}]
caches = [{level = 1, size_bytes = 32768}, {level = 2, size_bytes = 524288, shared_by = 4}]
[sources]
memory_bandwidth_gb_s = "measured with a stream of copies"
"""


def changed(old: str, new: str) -> str:
    assert old in BOARD
    return BOARD.replace(old, new)


def test_a_profile_is_read() -> None:
    device = parse_device(BOARD)
    assert device.cores == 4
    assert device.caches is not None
    assert [cache.size_bytes for cache in device.caches] == [32768, 524288]
    assert device.unknown == (
        "flash_bytes",
        "accelerator",
        "energy",
        "idle_power_w",
        "max_power_w",
        "thermal",
    )
    assert not device.measurable


def test_what_is_not_known_says_so() -> None:
    device = parse_device('name = "x"\ntitle = "X"\nkind = "phone"\nruntimes = ["coreml"]')
    assert device.cores is None
    assert device.unknown == (
        "processor", "clusters", "simd", "caches", "memory_bytes", "memory_bandwidth_gb_s", "flash_bytes",
        "accelerator", "energy", "idle_power_w", "max_power_w", "thermal",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("gb_s = 4.5", "gb_s = 0.0", "impossible `memory_bandwidth_gb_s`.*greater than 0.*got 0.0"),
        ("gb_s = 4.5", "gb_s = nan", "impossible `memory_bandwidth_gb_s`"),
        ("count = 4", "count = -1", r"impossible `clusters.0.count`.*got -1"),
        ("count = 4", 'count = "4"', r"impossible `clusters.0.count`"),
        ("= 524288", "= 1024", "nearest first.*32768 bytes at level 1 before 1024 bytes at level 2"),
        ("memory_bytes = 1000000000", "memory_bytes = 2000", "Main memory must be larger than every cache"),
        ('kind = "board"', 'kind = "toaster"', "impossible `kind`"),
        ("simd = ", "simdd = ", "key `simdd` that is not one of a profile. Did you mean 'simd'"),
        ('title = "A board"\n', "", "must have a key `title`"),
        ('bandwidth_gb_s = "', 'bandwith = "', "names a figure 'memory_bandwith' that there is not"),
        ("[sources]", "[sources", "must be TOML"),
        ("clock_ghz = 1.2", "clock_ghz = 1200.0", "impossible `clusters.0.clock_ghz`.*less than 20, got 1200"),
        ("clock_ghz = 1.2", "clock = 1.2", "key `clusters.0.clock` that is not one.*Did you mean 'clock_ghz'"),
        ("[sources]", "idle_power_w = 5.0\nmax_power_w = 4.0\n[sources]", "must be less than `max_power_w`.*5 and 4 W"),
        ("[sources]", "energy = {mac_pj = {float32 = -1.0}}\n[sources]", "impossible `energy.mac_pj.float32`"),
        ("[sources]", "energy = {mac_pj = {float8 = 1.0}}\n[sources]", "impossible `energy.mac_pj.float8"),
        ("[sources]", 'measured = ["bandwidth"]\n[sources]', "`measured` of 'board-1' names a figure 'bandwidth'"),
        ('name = "board-1"', 'name = "Board 1"', "impossible `name`"),
        ('["onnxruntime"]', '["../onnxruntime"]', r"impossible `runtimes.0`: input should be 'onnxruntime'"),
        ("simd_bits = 128", "simd_bits = 100", r"impossible `clusters.0.simd_bits`.*multiple of 32, got 100"),
        ("gb_s = 4.5", "gb_s = 1e300", "impossible `memory_bandwidth_gb_s`.*less than 10000"),
        ("gb_s = 4.5", "gb_s = 17000.0", "impossible `memory_bandwidth_gb_s`.*less than 10000, got 17000"),
        ("= 32768", "= 32", r"impossible `caches.0.size_bytes`.*equal to 1024, got 32"),
        ("memory_bytes = 1000000000", "memory_bytes = 4", "impossible `memory_bytes`.*equal to 1024, got 4"),
        ("memory_bandwidth_gb_s = 4.5\n", "", r"`sources` of 'board-1' speaks of `memory_bandwidth_gb_s`, which .* not give"),
        ("[sources]", 'measured = ["thermal"]\n[sources]', "`measured` of 'board-1' speaks of `thermal`"),
        ('[{count = 4, name = "Cortex-A53", clock_ghz = 1.2, simd_bits = 128}]', "[]", "impossible `clusters`.*at least 1"),
        ("simd_bits = 128}", "simd_bits = 128}, {count = 2, clock_ghz = 1.3}",
         "fastest cores first, but 'board-1' has Cortex-A53 at 1.2 GHz before 2 cores at 1.3 GHz"),
    ],
)  # fmt: skip
def test_impossible_profiles(old: str, new: str, text: str) -> None:
    with pytest.raises(DeviceError, match=text):
        parse_device(changed(old, new), origin="board.toml")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(BOARD, encoding="utf-8")
    assert read_device(path).name == "board-1"
    with pytest.raises(DeviceError, match="cannot be read"):
        read_device(tmp_path / "missing.toml")


def test_cores_of_one_clock_may_be_wide_and_narrow() -> None:
    """What is known of both decides: 1.2 GHz of 128 bits are no slower than 1.8 GHz of 64."""
    device = parse_device(
        changed("simd_bits = 128}", "simd_bits = 128}, {count = 2, clock_ghz = 1.8, simd_bits = 64}")
    )
    assert device.cores == 6


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("board-1", "pixel-9", r"is called 'pixel-9', as one in the catalogue is. Give it another `name`"),
        ("board-1", "phones-2026", "is called 'phones-2026', as one in the catalogue"),
        ('kind = "board"', 'kind = "host"', 'has `kind = "host"`, and that is this machine'),
    ],
)
def test_a_file_of_ones_own_is_of_another_device(tmp_path: Path, old: str, new: str, text: str) -> None:
    path = tmp_path / "board.toml"
    path.write_text(changed(old, new), encoding="utf-8")
    with pytest.raises(DeviceError, match=text):
        find_devices(str(path))


def test_two_files_of_one_name(tmp_path: Path) -> None:
    one, other, same = tmp_path / "one.toml", tmp_path / "other.toml", tmp_path / "same.toml"
    for path, text in ((one, BOARD), (same, BOARD), (other, changed("clock_ghz = 1.2", "clock_ghz = 0.2"))):
        path.write_text(text, encoding="utf-8")
    assert [device.name for device in find_devices(f"{one},{same},pixel-9,pixel-9")] == ["board-1", "pixel-9"]
    with pytest.raises(
        DeviceError, match=r"two profiles of '.*' are called 'board-1'. Change the `name` in one"
    ):
        find_devices(f"{one},{other}")


def test_one_device_is_asked_for() -> None:
    assert find_one("pixel-9, pixel-9", why="one").name == "pixel-9"
    with pytest.raises(
        DeviceError, match=r"a trial takes one, got 'pixel-8,pixel-9', which is several. Give one of"
    ):
        find_one("pixel-8,pixel-9", why="a trial takes one")
    with pytest.raises(DeviceError, match="'phones-2026' is a set of devices, and one was asked for"):
        find_device("phones-2026")


def test_every_device_of_the_catalogue_is_valid() -> None:
    devices = list_devices()
    assert "host" in [device.name for device in devices]
    assert all(isinstance(device, Device) for device in devices)


def test_every_figure_of_the_catalogue_has_a_source() -> None:
    for device in list_devices():
        known = [name for name in ("processor", *FIGURES) if name not in device.unknown]
        assert known or device.name == "host"
        assert [name for name in known if name not in device.sources] == [], device.name
        assert [name for name in device.sources if name in device.unknown] == [], device.name


def test_the_catalogue_has_the_devices_that_people_ask_for() -> None:
    kinds = {device.name: device.kind for device in list_devices()}
    for name in (
        "galaxy-s24",
        "galaxy-s25",
        "galaxy-s26",
        "iphone-15",
        "iphone-16",
        "iphone-17",
        "pixel-8",
        "pixel-9",
    ):
        assert kinds[name] == "phone"
    assert {"host", "phone", "board", "laptop", "server", "microcontroller"} == set(kinds.values())


def test_sets_name_devices_that_there_are() -> None:
    known = {device.name for device in list_devices()}
    for name, held in list_sets().items():
        assert set(held.members) <= known
        assert [device.name for device in find_devices(name)] == list(held.members)
        assert name not in known


def test_a_name_can_mean_several_devices(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(BOARD, encoding="utf-8")
    found = find_devices(f"samsung-iphone-2026, iphone-17,{path}")
    assert [device.name for device in found] == [
        "galaxy-s26",
        "galaxy-s26-snapdragon",
        "iphone-17",
        "board-1",
    ]
    with pytest.raises(DeviceError, match="Did you mean 'phones-2026'"):
        find_devices("phone-2026")


@pytest.mark.parametrize("name", ["host", "HOST", "Host"])
def test_the_host_is_found(name: str) -> None:
    device = find_device(name)
    assert device.measurable
    assert device.cores is not None
    assert device.cores >= 1
    for figure, source in device.sources.items():
        assert getattr(device, figure) is not None
        assert source == "read from this machine"


@pytest.mark.parametrize(
    ("name", "text"), [("hots", "Did you mean 'host'"), ("../host", "There is no device '../host'")]
)
def test_unknown_devices(name: str, text: str) -> None:
    with pytest.raises(DeviceError, match=text):
        find_device(name)


def test_the_profile_in_the_documentation_is_valid() -> None:
    text = (Path(__file__).parents[2] / "docs" / "devices.md").read_text(encoding="utf-8")
    device = parse_device(text.split("```toml\n")[1].split("```")[0])
    assert set(device.unknown) == {"flash_bytes", "accelerator"}
    assert device.measured == ("memory_bandwidth_gb_s",)
