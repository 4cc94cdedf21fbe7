"""The walk over modules is PyTorch's own."""

from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sned.graph.modules import modules_of

NESTS = st.recursive(st.none(), lambda inner: st.lists(inner, max_size=4), max_leaves=12)


def built(nest: list[object] | None, shared: nn.Module) -> nn.Module:
    """A leaf for None, else a module with what is in the list, a shared leaf and an empty place."""
    if nest is None:
        return nn.ReLU()
    module = nn.Sequential(*(built(inner, shared) for inner in nest), shared)  # type: ignore[arg-type]
    module.register_module("nothing", None)
    return module


@given(NESTS)
def test_each_module_comes_once_by_its_first_path_in_order(nest: list[object] | None) -> None:
    model = built(nest, nn.Linear(1, 1))
    assert list(modules_of(model)) == list(model.named_modules())


def test_a_cycle_ends() -> None:
    one, two = nn.Sequential(), nn.Sequential()
    one.add_module("two", two)
    two.add_module("one", one)
    assert [path for path, _ in modules_of(one)] == ["", "two"]
