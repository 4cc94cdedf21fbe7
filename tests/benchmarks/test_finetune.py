"""The augmentation of the fine-tuning benchmark, against slices written out."""

from __future__ import annotations

import torch

from benchmarks.finetune import crop_and_flip, steps_down


def test_every_image_is_a_crop_of_itself_mirrored_or_not() -> None:
    torch.manual_seed(0)
    images = torch.rand(64, 3, 9, 9) + 0.1
    made = crop_and_flip(images)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    found = []
    for before, after in zip(padded, made, strict=True):
        crops = {
            (down, right, mirrored): before[:, down : down + 9, right : right + 9].flip(-1)
            if mirrored
            else before[:, down : down + 9, right : right + 9]
            for down in range(9)
            for right in range(9)
            for mirrored in (False, True)
        }
        found.append([key for key, crop in crops.items() if torch.equal(crop, after)])
    assert all(len(keys) == 1 for keys in found)
    downs, rights, mirrors = ({keys[0][i] for keys in found} for i in range(3))
    assert downs == rights == set(range(9))
    assert mirrors == {False, True}


def test_the_peers_schedule_falls_twice() -> None:
    assert [steps_down(done / 10) for done in range(10)] == [1, 1, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
