import sys
from pathlib import Path

import pytest

from sned.cli.objects import called, load_object
from sned.errors import NotFoundError, UserError


def test_a_file_is_loaded_once_and_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("value = 7\n")
    (tmp_path / "mine.py").write_text("import neighbour_of_mine\nbox = [neighbour_of_mine.value]\n")
    box = load_object(f"{tmp_path}/mine.py:box", what="model")
    assert box == [7]
    assert load_object(f"{tmp_path}/mine.py:box", what="model") is box
    assert str(tmp_path) not in sys.path


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"value = {value}\n")
    assert [load_object(f"{tmp_path}/{folder}/same.py:value", what="model") for folder in "ab"] == [1, 2]


def test_a_package_and_a_dotted_name() -> None:
    assert load_object("collections:OrderedDict.fromkeys", what="model")("a") == {"a": None}


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ("model.py", UserError, r"Give the model as 'path/to/file\.py:name'.*got 'model\.py'.*make_model"),
        ("absent.py:make", NotFoundError, r"There is no file 'absent\.py'"),
        ("collections:OrderedDcit", NotFoundError, r"no 'OrderedDcit'\. Did you mean 'OrderedDict'\?"),
        (
            "no_such_package.sub:make",
            NotFoundError,
            r"no module 'no_such_package\.sub'\. Is 'no_such_package'",
        ),
    ],
)
def test_what_is_not_there_is_named(spec: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        load_object(spec, what="model")


def test_close_file_names_are_offered(tmp_path: Path) -> None:
    (tmp_path / "network.py").write_text("")
    with pytest.raises(NotFoundError, match=r"Did you mean 'network\.py'\?"):
        load_object(f"{tmp_path}/netwrok.py:make", what="model")


def test_a_file_that_fails_is_named_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("x = 1\nimport no_such_thing\n")
    with pytest.raises(
        UserError, match=r"bad\.py' could not be loaded in line 2: ModuleNotFoundError: No module"
    ):
        load_object(f"{tmp_path}/bad.py:x", what="model")
    (tmp_path / "bad.py").write_text("x = 1\n")
    assert load_object(f"{tmp_path}/bad.py:x", what="model") == 1


def test_a_function_is_called_and_its_failure_told() -> None:
    assert called([1], spec="a:b") == [1]
    assert called(lambda: [2], spec="a:b") == [2]
    with pytest.raises(UserError, match=r"'a:b' was called without arguments and failed with TypeError"):
        called(lambda needed: needed, spec="a:b")
