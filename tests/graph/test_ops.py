"""Every op that a covered network uses has a rule, or is frozen on purpose."""

from pathlib import Path

from sned.graph.rules import FREEZING, RULES

OPS = [line.strip() for line in (Path(__file__).parent / "ops.txt").read_text().splitlines()]


def test_every_op_of_the_covered_networks_is_known() -> None:
    """`python -m benchmarks.coverage_ops` writes the list anew; an asterisk marks PyTorch's own elementwise tag."""
    assert len(OPS) > 100
    named = {name for name in OPS if not name.endswith("*")}
    assert named - RULES.keys() - FREEZING == set()


def test_what_freezes_on_purpose_has_no_rule() -> None:
    assert not FREEZING & RULES.keys()
