from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sned.cli.inputs import load_batches, load_evaluate, load_example, load_model
from sned.errors import CheckpointError, ExampleError, ModelError, NotFoundError, UserError


def test_a_shape_gives_the_same_numbers_each_time() -> None:
    first, second = load_example("2,3, 4"), load_example("2,3,4")
    assert first.shape == (2, 3, 4)
    assert torch.equal(first, second)


def test_an_example_may_be_anything_that_the_model_takes(user_file: Path) -> None:
    assert load_example(f"{user_file}:example")["x"].shape == (2, 3, 8, 8)


@pytest.mark.parametrize("text", ["1x3x32x32", "1,3,-1", "1,,3", "0,3", "one"])
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(
        ExampleError, match=r"Give the example as a shape with its batch, such as '1,3,32,32'"
    ):
        load_example(text)


def test_batches_may_be_a_generator_function(user_file: Path) -> None:
    assert [batch.shape[0] for batch in load_batches(f"{user_file}:batches")] == [16, 16]
    with pytest.raises(UserError, match=r"must give batches one after the other.*got int"):
        load_batches(f"{user_file}:number")
    with pytest.raises(UserError, match=r"failed with KeyError: 'no such dataset'"):
        load_batches(f"{user_file}:broken")


def test_evaluate_must_be_a_function(user_file: Path) -> None:
    assert load_evaluate(f"{user_file}:accuracy")(nn.Identity()) == 0.75
    with pytest.raises(UserError, match=r"must be a function that takes the model.*got int"):
        load_evaluate(f"{user_file}:number")


def test_a_model_may_be_a_function_or_a_class(user_file: Path) -> None:
    assert type(load_model(f"{user_file}:make_model")).__name__ == "Small"
    assert type(load_model(f"{user_file}:Small")).__name__ == "Small"
    with pytest.raises(ModelError, match=r"must be a model .*got int"):
        load_model(f"{user_file}:number")


@pytest.mark.parametrize("wrapped", ["safetensors", "plain", "lightning", "parallel"])
def test_weights_are_filled_in_however_they_were_saved(user_file: Path, tmp_path: Path, wrapped: str) -> None:
    model = load_model(f"{user_file}:make_model")
    state = {name: value + 1 for name, value in model.state_dict().items()}
    path = tmp_path / ("w.safetensors" if wrapped == "safetensors" else "w.pt")
    if wrapped == "safetensors":
        save_file(state, path)
    else:
        kinds = {
            "plain": state,
            "lightning": {"epoch": 3, "state_dict": state},
            "parallel": {f"module.{k}": v for k, v in state.items()},
        }
        torch.save(kinds[wrapped], path)
    loaded = load_model(f"{user_file}:make_model", path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_weights_of_another_network_are_refused(user_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"are not those of this model: Missing key"):
        load_model(f"{user_file}:make_model", path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="must hold a state dict, got list"):
        load_model(f"{user_file}:make_model", path)


def test_weights_that_need_code_to_be_run_are_refused(user_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match="not a state dict that can be read without running code"):
        load_model(f"{user_file}:make_model", path)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_and_missing_weights_are_named(user_file: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match=r"There is no file '.*w\.\w+'"):
        load_model(f"{user_file}:make_model", tmp_path / name)
    (tmp_path / name).write_bytes(b"\x00" * 50)
    with pytest.raises(CheckpointError, match=r"is not a (state dict|whole safetensors file)"):
        load_model(f"{user_file}:make_model", tmp_path / name)


def test_a_network_that_sned_saved_is_cut_and_filled(user_file: Path, tmp_path: Path) -> None:
    import sned

    model = load_model(f"{user_file}:make_model").eval()
    graph = sned.trace(model, torch.zeros(1, 3, 8, 8))
    small = sned.apply(model, graph.plan({graph.groups[0].name: [1, 5]}))
    sned.save(small, tmp_path / "small.safetensors")
    loaded = load_model(f"{user_file}:make_model", tmp_path / "small.safetensors").eval()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), small(x))
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in model.parameters())


def test_a_network_that_the_file_made_is_filled_with_each_weights_apart(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from torch import nn\nnet = nn.Linear(2, 1)\n")
    for value in (1.0, 2.0):
        torch.save({"weight": torch.full((1, 2), value), "bias": torch.zeros(1)}, tmp_path / f"{value}.pt")
    first, second = (
        load_model(f"{tmp_path / 'own.py'}:net", tmp_path / f"{value}.pt") for value in (1.0, 2.0)
    )
    assert [model.weight[0, 0].item() for model in (first, second)] == [1.0, 2.0]
