"""Rendered scenes on disk: the cells of an experiment look at the same ones, and rendering costs more than reading."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

import md_perception.scenes
from md_perception.sensing import thermal
from md_training import preprocess
from md_training.data import sample, synthetic
from md_training.data.sample import Sample, ThermalView
from md_training.data.synthetic import SceneData, render

log = logging.getLogger(__name__)

BLOCK = 200
"""Scenes of one file: consecutive seeds from a multiple of it."""
_SAME_SIZE = ("rgb", "thermal", "rgb_to_thermal", "mask", "night")
_OBJECTS = ("boxes", "labels", "ignored")


def generator_hash() -> str:
    """Return the SHA-256 of the scene world's code: what its figures are figures of."""
    folder = Path(md_perception.scenes.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class SceneStore:
    """A folder of rendered scenes at the network's size, under a key of all that they depend on.

    Scenes that are not there are rendered and added; other code or settings have another key, so nothing ever goes
    stale, and the folder may be deleted at any time.
    """

    def __init__(self, folder: Path, data: SceneData, input_size: tuple[int, int], with_full: bool) -> None:
        """data: cameras; which seeds does not matter. with_full: see synthetic.scene_sample."""
        self._data, self._input_size, self._with_full = data, input_size, with_full
        code = [Path(str(module.__file__)).read_bytes() for module in (synthetic, sample, preprocess, thermal)]
        cameras = {name: value for name, value in asdict(data).items() if name.endswith(("_size", "_resampling"))}
        settings = json.dumps([cameras, input_size, with_full, generator_hash()])
        self.folder = folder / hashlib.sha256(b"\0".join([settings.encode(), *code])).hexdigest()[:16]

    def samples(self, seeds: range, workers: int = 0) -> Iterator[Sample]:
        """Yield the samples of consecutive seeds in order. workers: processes that render."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for start in range(seeds.start // BLOCK * BLOCK, seeds.stop, BLOCK):
            block = range(start, start + BLOCK)
            wanted = range(max(start, seeds.start), min(block.stop, seeds.stop))
            path = self.folder / f"{start}.npz"
            if path.exists():
                yield from list(_read(path, start))[wanted.start - start : wanted.stop - start]
            else:
                rendered = render(wanted, self._data, self._input_size, workers, self._with_full)
                if wanted != block:  # a part is cheap to render again
                    yield from rendered
                    continue
                held = list(rendered)
                _write(path, held)
                yield from held


def _write(path: Path, samples: Sequence[Sample]) -> None:
    arrays = {name: np.stack([getattr(sample, name) for sample in samples]) for name in _SAME_SIZE}
    arrays |= {name: np.concatenate([getattr(sample, name) for sample in samples]) for name in _OBJECTS}
    arrays["count"] = np.array([len(sample.labels) for sample in samples])
    if seen := [sample.seen for sample in samples if sample.seen is not None]:
        arrays["seen"] = np.stack(seen)
    if full := [sample.full for sample in samples if sample.full is not None]:
        arrays["full"] = np.stack([view.image for view in full])
        arrays["rgb_to_full"] = np.stack([view.rgb_to_thermal for view in full])
    beside = path.with_suffix(f".{os.getpid()}.partial.npz")
    np.savez(beside, **arrays)  # type: ignore[arg-type]
    os.replace(beside, path)


def _read(path: Path, first_seed: int) -> Iterator[Sample]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    ends = np.cumsum(arrays["count"])[:-1]
    objects = {name: np.split(arrays[name], ends) for name in _OBJECTS}
    for index in range(len(arrays["count"])):
        one = {name: arrays[name][index] for name in _SAME_SIZE} | {name: objects[name][index] for name in _OBJECTS}
        yield Sample(
            **one | {"night": bool(one["night"])},
            name=f"scene {first_seed + index}",
            full=ThermalView(arrays["full"][index], arrays["rgb_to_full"][index]) if "full" in arrays else None,
            seen=arrays["seen"][index] if "seen" in arrays else None,
        )
