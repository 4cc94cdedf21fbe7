"""Which runtimes the tests of exports can use here."""

import pytest

from sned.export import TARGETS, find_target, installed

SHARING = [name for name in TARGETS if find_target(name).levels]
"""Those whose files hold several networks."""


def available(name: str) -> None:
    """Skip the test, and say so, where the extra of a runtime is not installed."""
    if not installed(find_target(name)):
        pytest.skip(f"needs 'sned[{find_target(name).extra}]'")
