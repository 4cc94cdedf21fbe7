import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from sned.report import Asked, Check, Curve, GroupLoss, LayerLoss, Point, Report, State, to_html
from sned.report.charts import curve_chart, group_chart, latency_chart, layer_chart
from sned.report.svg import _VARIABLES
from tests.report.conftest import made_up


class Page(HTMLParser):
    """Collects what a page would fetch, the identifiers in it, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and value:
                (self.references if value.startswith("#") else self.fetched).append(value)
            if name == "id" and value:
                self.ids.append(value)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def text() -> str:
    return to_html(made_up())


def test_the_page_needs_nothing_else(text: str) -> None:
    page = Page(text)
    assert page.fetched == []
    assert "<script" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_pictures_do_not_share_identifiers(text: str) -> None:
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references} <= set(page.ids)


def test_colours_are_those_of_the_page_in_light_and_dark(text: str) -> None:
    assert not [colour for colour in _VARIABLES if colour in text]
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    light, dark = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    for scheme in (light, dark):
        assert used <= set(re.findall(r"(--[\w-]+):", scheme))


def test_everything_is_in_it(text: str) -> None:
    readable = Page(text).text
    for part in (
        "2.04× faster",
        "stage2.1.conv1",
        "Surgery against replay",
        "Knapsack over the cost",
        "these are the outputs of the model",
        "Example CPU 9000 <8 cores>",
        "onnxruntime",
        "50% = 1.02 ms",
        "trace 0.410 s",
        "chosen: 1.00 ms",
    ):
        assert part in readable, part


def test_names_cannot_break_the_page(report: Report) -> None:
    evil = "<script>alert(1)</script> & $x^2$"
    groups = (GroupLoss(evil, 4, 2),)
    text = to_html(replace(report, asked=replace(report.asked, model=evil), groups=groups, notes=(evil,)))
    assert "<script>" not in text
    shown = "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x^2$"
    assert shown in text
    picture = group_chart(groups)
    assert picture is not None
    assert shown in picture.svg  # not read as mathematics either


def test_a_failed_check_and_a_missed_budget_are_seen_first(noisy_report: Report) -> None:
    asked = replace(noisy_report.asked, limits={"latency_ms": 0.5})
    checks = (Check("ONNX against PyTorch", False, "They differ."),)
    text = Page(to_html(replace(noisy_report, asked=asked, checks=checks))).text
    table = text.index("Before and after")
    assert text.index("✗") < table
    assert text.index("ONNX against PyTorch failed.") < table
    assert text.index("The machine was busy while the network was timed (after)") < table


def test_a_report_with_nothing_in_it_is_still_a_page(report: Report) -> None:
    asked = Asked("M", "1 × 3", {}, {}, "host", "onnxruntime", 1, 1)
    text = to_html(Report(asked, State(), State(), report.environment))
    assert "Nothing was measured" in text
    assert "<svg" not in text


def test_the_same_report_gives_the_same_page(text: str) -> None:
    assert to_html(made_up()) == text


@pytest.mark.parametrize("chart", ["groups", "layers", "latency", "curve"])
def test_each_picture_is_well_formed_and_says_what_it_shows(report: Report, chart: str) -> None:
    draw = {
        "groups": lambda: group_chart(report.groups),
        "layers": lambda: layer_chart(report.layers),
        "latency": lambda: latency_chart(report),
        "curve": lambda: curve_chart(report),
    }
    picture = draw[chart]()
    assert picture is not None
    root = ET.fromstring(picture.svg)
    assert root.attrib["role"] == "img"
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    assert picture.description.endswith(".")


def test_bars_are_as_long_as_what_was_kept() -> None:
    picture = group_chart((GroupLoss("only", 100, 25),))
    assert picture is not None
    widths: dict[str, float] = {}
    drawn = picture.svg.replace("\n", " ")
    for path, colour in re.findall(r'd="([^"]*)"[^>]*style="fill: var\((--[\w-]+)\)', drawn):
        xs = [float(x) for x in re.findall(r"[ML] ([\d.]+) ", path)]
        widths.setdefault(colour, max(xs) - min(xs))
    assert widths["--after"] / widths["--after-soft"] == pytest.approx(0.25, rel=1e-3)


def test_a_network_of_many_layers_shows_those_that_lost_most() -> None:
    groups = tuple(GroupLoss(f"layer{n}", 200, 200 - n) for n in range(100))
    picture = group_chart(groups)
    assert picture is not None
    assert "48 groups of 100" in picture.description
    assert "layer99" in picture.svg
    assert "layer51" not in picture.svg


def test_layers_that_take_no_time_share_a_row() -> None:
    tiny = [LayerLoss(f"relu{n}", "relu", 0.001, 0.0005, 0, 0) for n in range(3)]
    picture = layer_chart([LayerLoss("conv", "conv", 1.0, 0.5, 1, 1), *tiny])
    assert picture is not None
    assert "3 others" in picture.svg
    assert "relu1" not in picture.svg
    assert layer_chart([LayerLoss("conv", "conv", None, None, 1, 1)]) is None


def test_a_curve_of_figures_that_are_no_fractions_keeps_its_unit(report: Report) -> None:
    curve = Curve("negative perplexity", (Point(1.0, -30.0), Point(2.0, -25.0, chosen=True)))
    picture = curve_chart(replace(report, curve=curve))
    assert picture is not None
    assert "negative perplexity<" in picture.svg
    assert "chosen: 2.00 ms, -25<" in picture.svg
