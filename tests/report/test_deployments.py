from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sned.export import Exported, Parity
from sned.report import Report, deployment, deployments_table, from_json, to_html, to_json
from sned.report.deployments import deployment_row
from sned.timing import Latency


def exported() -> Exported:
    return Exported(
        path=Path("some/folder/model.tflite"),
        size_bytes=1_250_000,
        inputs=("x",),
        outputs=("output",),
        dynamic_batch=False,
        static_because="",
        parity=Parity(0.0123, 0.02, 0.991, 256, 0.0311),
        batches=(1,),
        target="litert",
        precision="int8",
        latency=Latency(2.0, 1.9, 2.1, 50, 1),
        torch_latency=Latency(8.0, 7.9, 8.1, 50, 1),
        accuracy=0.914,
        torch_accuracy=0.916,
        notes=("Images enter as [batch, height, width, channels].",),
    )


def test_a_row_sets_each_figure_beside_pytorchs() -> None:
    row = deployment_row(deployment(exported(), "pruned"))
    assert (row.name, row.runtime, row.size) == ("pruned", "LiteRT, int8", "1.25 MB")
    assert (row.difference, row.error, row.agreement) == ("0.012", "0.031", "99.1 %")
    assert (row.accuracy, row.latency, row.versus_torch) == ("91.40 % (model 91.60 %)", "2.00 ms", "×0.25")


def test_what_was_not_obtained_is_a_dash() -> None:
    bare = replace(exported(), latency=None, accuracy=None, parity=Parity(0.0, 0.0, None))
    row = deployment_row(deployment(bare))
    assert row.name == "model.tflite"
    assert (row.agreement, row.accuracy, row.latency, row.versus_torch) == ("–", "–", "–", "–")


def test_remarks_that_files_share_are_said_once() -> None:
    console = Console(width=200, record=True)
    console.print(deployments_table([deployment(exported(), "a"), deployment(exported(), "b")]))
    assert console.export_text().count("Images enter as [batch, height, width, channels].") == 1


def test_a_report_carries_its_files_through_json_and_into_the_page(report: Report) -> None:
    with_files = replace(report, deployments=(deployment(exported(), "pruned, <int8>"),))
    assert from_json(to_json(with_files)) == with_files
    page = to_html(with_files)
    assert "Exported files" in page
    assert "pruned, &lt;int8&gt;" in page
    assert "Exported files" not in to_html(report)
