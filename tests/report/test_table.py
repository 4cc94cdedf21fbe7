from rich.console import Console

from sned.report import Report
from sned.report.table import noise, to_table


def printed(report: Report) -> str:
    console = Console(width=150, color_system=None)
    with console.capture() as captured:
        console.print(to_table(report))
    return captured.get()


def test_the_table_has_before_after_ratio_and_how(report: Report) -> None:
    lines = printed(report).splitlines()
    [latency] = [line for line in lines if "Latency, median" in line and "│" in line]
    cells = [cell.strip() for cell in latency.strip("│").split("│")]
    assert cells[:4] == ["Latency, median", "2.04 ms", "1.00 ms", "×0.49"]
    assert cells[4].startswith("measured: ONNX Runtime 1.31.0")
    assert any(line.startswith("✓ Latency, median at most 1.02 ms") for line in lines)


def test_a_busy_machine_is_told(report: Report, noisy_report: Report) -> None:
    assert noise(report) == ""
    assert "timed (after)" in noise(noisy_report)
    assert "! The machine was busy" in printed(noisy_report)
