import pytest

from sned import errors
from sned.errors import SnedError, UserError, close_names

FAMILY = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, BaseException)
]


def test_every_error_is_a_sned_error() -> None:
    assert len(FAMILY) > 5
    assert all(issubclass(member, SnedError) for member in FAMILY)


@pytest.mark.parametrize("member", FAMILY, ids=lambda member: member.__name__)
def test_the_users_mistakes_exit_with_two(member: type[SnedError]) -> None:
    assert member.exit_code == (2 if issubclass(member, UserError) else 1)


@pytest.mark.parametrize(
    ("name", "known", "sentence"),
    [
        ("pixel9", ["pixel-9", "host", "pixel-8"], "Did you mean 'pixel-9' or 'pixel-8'?"),
        ("HOST", ["Host", "rpi"], "Did you mean 'Host'?"),
        ("zzz", ["b", "a"], "Known: a, b."),
        ("zzz", [], "None are known."),
    ],
)
def test_close_names(name: str, known: list[str], sentence: str) -> None:
    assert close_names(name, known) == sentence


def test_a_long_list_is_cut_and_counted() -> None:
    sentence = close_names("zzz", [f"device {i:02d}" for i in range(50)], limit=2)
    assert sentence.endswith("device 07, … (50 in all).")
