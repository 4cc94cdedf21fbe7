import json
from dataclasses import replace

import pytest

from sned.errors import UserError
from sned.report import Report, State, environment, from_json, to_json
from tests.report.conftest import made_up


def test_json_gives_the_same_report_back(report: Report) -> None:
    assert from_json(to_json(report)) == report
    bare = Report(asked=report.asked, before=State(), after=State(), environment=report.environment)
    assert from_json(to_json(bare)) == bare


def test_json_has_the_figures_where_one_looks_for_them(report: Report) -> None:
    data = json.loads(to_json(report))
    assert data["format"] == 1
    assert data["before"]["latency"]["median_ms"] == 2.04
    assert data["asked"]["limits"] == {"latency_ms": 1.02}
    assert data["curve"]["points"][3]["chosen"] is True
    assert data["before"]["energy_mj"] is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{}", r"not a report of sned: asked: Field required"),
        ("not json", r"not a report of sned: the file: Invalid JSON"),
        (to_json(replace(made_up(), format=99)), r"is of format 99, and this version of sned reads format 1"),
    ],
)
def test_what_is_no_report_is_refused(text: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        from_json(text)


def test_the_environment_is_that_of_this_machine() -> None:
    here = environment(("torch", "no-such-package"))
    assert here.cores >= 1
    assert here.machine
    assert list(here.versions) == ["torch"]
