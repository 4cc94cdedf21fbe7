import importlib.util

import pytest

from sned.cli.zoo import from_zoo
from sned.errors import NotFoundError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None or importlib.util.find_spec("timm") is None,
    reason="torchvision and timm are not installed",
)


@pytest.mark.parametrize(
    ("library", "name", "parameters"),
    # As their documentation tells.
    [("torchvision", "squeezenet1_1", 1_235_496), ("timm", "resnet10t", 5_440_000)],
)
def test_a_model_is_built_by_name(library: str, name: str, parameters: int) -> None:
    model = from_zoo(library, name)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=1e-3)


@pytest.mark.parametrize(
    ("library", "name", "close"), [("torchvision", "resnet51", "resnet"), ("timm", "resnet10x", "resnet10t")]
)
def test_close_names_are_offered(library: str, name: str, close: str) -> None:
    with pytest.raises(NotFoundError, match=rf"{library} has no model '{name}'\. Did you mean .*{close}"):
        from_zoo(library, name)
