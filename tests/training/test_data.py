"""Batches: every input once, the same ones again, and shared among processes without loss or repetition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sned.errors import TrainingError, UserError
from sned.training.data import Batches, Place, batches_of, held_out, unpacked
from sned.training.randomness import own_randomness

INPUTS, TARGETS = torch.arange(40.0)[:, None], torch.arange(40)


class Noisy(Dataset):  # type: ignore[type-arg]
    """Inputs with noise from every global generator."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return INPUTS[index] + torch.rand(1) + np.random.rand(), index  # type: ignore[return-value]


def seen(batches: Batches, epoch: int = 0, start: int = 0) -> list[torch.Tensor]:
    return [batch.targets for batch in batches.epoch(epoch, start)]


def kinds() -> list[object]:
    loader = DataLoader(TensorDataset(INPUTS, TARGETS), 8, shuffle=True)
    batches = [(INPUTS[i : i + 8], TARGETS[i : i + 8]) for i in range(0, 40, 8)]
    return [
        (INPUTS, TARGETS),
        (INPUTS.numpy(), TARGETS.numpy()),
        TensorDataset(INPUTS, TARGETS),
        loader,
        batches,
    ]


@pytest.mark.parametrize("data", kinds(), ids=["tensors", "arrays", "dataset", "loader", "list"])
def test_every_input_once_and_the_same_when_asked_again(data: object) -> None:
    batches = batches_of(data, size=8, place=Place())
    first, second = seen(batches), seen(batches, 1)
    assert len(batches) == len(first) == 5
    assert sorted(torch.cat(first).tolist()) == list(range(40))
    again = batches_of(data, size=8, place=Place())
    assert torch.cat(seen(again, 1, start=2)).tolist() == torch.cat(second[2:]).tolist()
    if not isinstance(data, list):
        assert torch.cat(first).tolist() != torch.cat(second).tolist()
        other = batches_of(data, size=8, place=Place(), seed=1)
        assert torch.cat(seen(other)).tolist() != torch.cat(first).tolist()


@pytest.mark.parametrize("data", kinds(), ids=["tensors", "arrays", "dataset", "loader", "list"])
def test_two_processes_share_every_batch(data: object) -> None:
    alone = seen(batches_of(data, size=8, place=Place()))
    shares = [seen(batches_of(data, size=8, place=Place(rank=rank, world=2))) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == len(alone)
    for whole, *parts in zip(alone, *shares, strict=True):
        assert [len(part) for part in parts] == [4, 4]
        assert sorted(torch.cat(parts).tolist()) == sorted(whole.tolist())


@pytest.mark.parametrize("data", kinds(), ids=["tensors", "arrays", "dataset", "loader", "list"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_takes_every_input_once_over_all_processes(data: object, world: int) -> None:
    if isinstance(data, DataLoader):
        data = DataLoader(data.dataset, 8)
    places = [Place(rank=rank, world=world) for rank in range(world)]
    parts = [seen(batches_of(data, size=8, place=place, training=False)) for place in places]
    assert sorted(int(n) for part in parts for batch in part for n in batch) == list(range(40))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_dataset_draws_is_the_same_after_a_resume(workers: int) -> None:
    def loader() -> Batches:
        made = DataLoader(Noisy(), 8, shuffle=True, num_workers=workers)
        return batches_of(made, size=8, place=Place())

    whole = [batch.inputs for batch in loader().epoch(3)]
    torch.rand(7)
    rest = [batch.inputs for batch in loader().epoch(3, start=2)]
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))
    assert not torch.equal(whole[0], next(iter(loader().epoch(4))).inputs)


def test_a_loader_with_a_generator_of_its_own_begins_every_epoch_anew() -> None:
    def loader() -> Batches:
        own = torch.Generator().manual_seed(5)
        return batches_of(
            DataLoader(TensorDataset(INPUTS, TARGETS), 8, True, generator=own), size=8, place=Place()
        )

    one = loader()
    seen(one, 0)
    assert torch.cat(seen(one, 1)).tolist() == torch.cat(seen(loader(), 1)).tolist()


def test_augmentation_is_drawn_for_the_position() -> None:
    def noise(x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)

    batches = batches_of((INPUTS, TARGETS), size=8, place=Place(), augment=noise)
    whole = [batch.inputs for batch in batches.epoch(0)]
    rest = [batch.inputs for batch in batches.epoch(0, start=3)]
    assert torch.equal(whole[3], rest[0])
    assert all(batch.rows is None for batch in batches.epoch(0))


def test_what_was_held_out_is_not_trained_on() -> None:
    for data in ((INPUTS, TARGETS), TensorDataset(INPUTS, TARGETS)):
        train, rest = held_out(data, 0.25, seed=3)
        ids = [
            sorted(torch.cat(seen(batches_of(part, size=10, place=Place(), training=False))).tolist())
            for part in (train, rest)
        ]
        assert len(ids[1]) == 10
        assert sorted(ids[0] + ids[1]) == list(range(40))
        assert held_out((INPUTS, TARGETS), 0.25, seed=3)[1][1].tolist() == ids[1]
        assert held_out((INPUTS, TARGETS), 0.25, seed=4)[1][1].tolist() != ids[1]


def test_dicts_and_pairs_are_batches() -> None:
    found = unpacked({"ids": torch.zeros(3, 4), "labels": torch.arange(3)})
    assert (list(found.inputs), found.targets.tolist(), found.count) == (["ids"], [0, 1, 2], 3)
    assert unpacked(((torch.zeros(2, 1), torch.ones(2, 1)), torch.zeros(2))).count == 2


class Endless(IterableDataset):  # type: ignore[type-arg]
    """An iterable data set of three batches' worth, without a length."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        return iter([(INPUTS[i], i) for i in range(24)])


class Announced(list):  # type: ignore[type-arg]
    """A list that claims to be longer than it is."""

    def __len__(self) -> int:
        return 9


def test_data_that_end_early_are_told() -> None:
    batches = [(INPUTS[:4], TARGETS[:4])] * 3
    with pytest.raises(TrainingError, match="announced 9 batches an epoch, but ended after 3 in epoch 1"):
        seen(batches_of(Announced(batches), size=4, place=Place()))
    generator = batches_of((batch for batch in batches), size=4, place=Place(), steps=3)
    seen(generator)
    with pytest.raises(TrainingError, match=r"after 0 in epoch 2\. A generator can be read only once"):
        seen(generator, 1)


def test_data_without_a_length_need_steps() -> None:
    loader = DataLoader(Endless(), 8)
    with pytest.raises(UserError, match=r"has no length\. Say how many batches"):
        batches_of(loader, size=8, place=Place())
    assert len(seen(batches_of(loader, size=8, place=Place(), steps=3))) == 3


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([torch.zeros(3)], r"pair \(inputs, targets\), or a dict .* got Tensor|got a Tensor of 3"),
        ([(1, 2, 3)], "got a tuple of 3"),
        ([{"x": torch.zeros(3)}], "got a dict of 1"),
        ([], "hold no batch at all"),
        ((INPUTS, TARGETS[:3]), r"equally many inputs, at least one, .* got \[3, 40\]"),
        ("data", "got str"),
        (torch.zeros(3), "got Tensor"),
    ],
    ids=str,
)
def test_what_is_no_data_is_told(data: object, match: str) -> None:
    with pytest.raises(UserError, match=match):
        seen(batches_of(data, size=8, place=Place()))


def test_a_share_that_cannot_be_held_out_is_told() -> None:
    with pytest.raises(UserError, match=r"must be in \(0, 1\).* got 0.001 of 40"):
        held_out((INPUTS, TARGETS), 0.001, seed=0)
    with pytest.raises(UserError, match="For a loader or a list, give validation data"):
        held_out([(INPUTS, TARGETS)], 0.5, seed=0)


def test_the_users_generators_are_put_back() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(1)
    np.random.seed(1)
    with own_randomness():
        seen(batches_of(DataLoader(Noisy(), 8, shuffle=True), size=8, place=Place()))
    assert torch.equal(torch.rand(3), expected[0])
    assert (np.random.rand(3) == expected[1]).all()
