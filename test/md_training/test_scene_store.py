"""Scenes kept on disk are those that would be rendered."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from md_training.data import scene_store
from md_training.data.sample import Sample
from md_training.data.scene_store import SceneStore
from md_training.data.synthetic import SceneData, render

DATA = SceneData(camera_size=(96, 64), thermal_size=(24, 16), first_seed=8, scenes=9)


def assert_same(one: Sample, other: Sample) -> None:
    for name in ("rgb", "thermal", "rgb_to_thermal", "boxes", "labels", "ignored", "mask", "seen"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None:
            np.testing.assert_array_equal(a, b, err_msg=name)
            assert a.dtype == b.dtype, name
    assert (one.name, one.night, one.full is None) == (other.name, other.night, other.full is None)
    if one.full is not None and other.full is not None:
        np.testing.assert_array_equal(one.full.image, other.full.image)
        np.testing.assert_array_equal(one.full.rgb_to_thermal, other.full.rgb_to_thermal)


@pytest.mark.parametrize("with_full", [False, True])
@pytest.mark.parametrize("input_size", [(48, 32), (48, 40)])  # the second is padded
def test_what_is_read_is_what_was_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_full: bool, input_size: tuple[int, int]
) -> None:
    monkeypatch.setattr(scene_store, "BLOCK", 4)
    seeds = range(6, 17)  # parts of two blocks, and one whole
    expected = list(render(seeds, DATA, input_size, with_full=with_full))
    store = SceneStore(tmp_path, DATA, input_size, with_full)
    for _ in range(2):
        found = list(store.samples(seeds))
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
        assert sorted(path.name for path in store.folder.iterdir()) == ["12.npz", "8.npz"]
    monkeypatch.setattr(scene_store, "render", lambda *_: pytest.fail("rendered again"))
    assert [sample.name for sample in store.samples(range(8, 16))] == [f"scene {seed}" for seed in range(8, 16)]
    assert [sample.name for sample in store.samples(range(9, 12))] == ["scene 9", "scene 10", "scene 11"]


def test_other_cameras_have_another_key_and_other_seeds_the_same(tmp_path: Path) -> None:
    def key(data: SceneData, input_size: tuple[int, int] = (48, 32), with_full: bool = False) -> str:
        return SceneStore(tmp_path, data, input_size, with_full).folder.name

    assert key(DATA) == key(replace(DATA, first_seed=100, scenes=3, evaluation_scenes=1))
    keys = {
        key(DATA),
        key(replace(DATA, thermal_size=(48, 32))),
        key(replace(DATA, thermal_resampling="bilinear")),
        key(replace(DATA, camera_size=(192, 128))),
        key(DATA, (96, 64)),
        key(DATA, with_full=True),
    }
    assert len(keys) == 6
