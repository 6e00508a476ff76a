"""Tiny data sets from scene frames, in the folders and file formats of KAIST, MFNet and YOLO or COCO sets."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from md_perception.labels import DETECTION
from md_perception.scenes import SceneFrame, SceneSettings, TimeOfDay, render_frame
from md_perception.sensing.thermal import percentile_range, to_8bit

KAIST_TRAINING = ("set00/V000/I00001", "set00/V000/I00003", "set03/V001/I00005")
KAIST_TEST = ("set06/V000/I00019", "set09/V000/I00039")
MFNET_LISTS = {"train": ("00001D", "00002N"), "val": ("00003D",), "test": ("00004D", "00005N")}
LWIR_SHIFT_PX = (4, -2)
"""How far the boxes of the paired annotations lie apart in x and y."""


def scene(seed: int, size: tuple[int, int], night: bool = False) -> tuple[SceneFrame, np.ndarray]:
    """Return a scene frame of aligned cameras and its thermal image in 8 bits."""
    time = TimeOfDay.NIGHT if night else TimeOfDay.DAY
    frame = render_frame(seed, SceneSettings(size=size, time_of_day=time, thermal_misalignment_px=0))
    return frame, to_8bit(frame.thermal_k, *percentile_range(frame.thermal_k))


@dataclass(frozen=True)
class KaistPerson:
    """x, y, w, h px as the files have them: counted from 1."""

    box: tuple[int, int, int, int]
    occlusion: int


def write_kaist(root: Path, first_seed: int = 0, size: tuple[int, int] = (640, 512)) -> dict[str, list[KaistPerson]]:
    """Write images/, annotations_paired/ for set00 to set05, KAIST_annotation.json for the rest, and two lists of names
    (imageSets/tiny-train.txt, tiny-test.txt). Returns the persons of each frame, in visible coordinates.
    """
    persons: dict[str, list[KaistPerson]] = {}
    for index, name in enumerate(KAIST_TRAINING + KAIST_TEST):
        set_, video, frame_id = name.split("/")
        frame, thermal = scene(first_seed + index, size, night=set_ in ("set03", "set09"))
        for camera, image in (("visible", frame.rgb), ("lwir", np.repeat(thermal[..., None], 3, axis=2))):
            path = root / "images" / set_ / video / camera / f"{frame_id}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, quality=95)
        persons[name] = []
        is_person = frame.objects.labels == DETECTION.id_of("person")
        for box, occlusion in zip(frame.objects.boxes[is_person], frame.objects.occlusion[is_person], strict=True):
            left, top, right, bottom = (round(float(value)) for value in box)
            rounded = (left + 1, top + 1, max(1, right - left), max(1, bottom - top))
            persons[name].append(KaistPerson(rounded, int(occlusion)))
        if name in KAIST_TRAINING:
            for camera, (dx, dy) in (("visible", (0, 0)), ("lwir", LWIR_SHIFT_PX)):
                path = root / "annotations_paired" / set_ / video / camera / f"{frame_id}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                lines = [bbgt_line("person", shifted(person.box, dx, dy), person.occlusion) for person in persons[name]]
                path.write_text("\n".join(["% bbGt version=3", *lines]) + "\n")
    (root / "imageSets").mkdir()
    (root / "imageSets" / "tiny-train.txt").write_text("\r\n".join(KAIST_TRAINING) + "\r\n")
    (root / "imageSets" / "tiny-test.txt").write_text("\n".join(KAIST_TEST) + "\n")
    (root / "KAIST_annotation.json").write_text(json.dumps(kaist_json(persons, size)))
    return persons


def bbgt_line(label: str, box: Sequence[int], occlusion: int = 0, ignore: int = 0) -> str:
    """Return a line of the toolbox's version 3."""
    return f"{label} {' '.join(map(str, box))} {occlusion} 0 0 0 0 {ignore} 0"


def shifted(box: Sequence[int], dx: int, dy: int) -> tuple[int, ...]:
    return (box[0] + dx, box[1] + dy, *box[2:])


def kaist_json(persons: dict[str, list[KaistPerson]], size: tuple[int, int]) -> dict[str, object]:
    """Return the test frames in the form of MLPD's KAIST_annotation.json."""
    names = ("__ignore__", "person", "cyclist", "people", "person?")
    return {
        "images": [
            {"id": id_, "im_name": name, "height": size[1], "width": size[0]} for id_, name in enumerate(KAIST_TEST)
        ],
        "annotations": [
            {
                "id": 100 * image_id + number,
                "image_id": image_id,
                "category_id": 1,
                "bbox": list(person.box),
                "height": person.box[3],
                "occlusion": person.occlusion,
                "ignore": 0,
            }
            for image_id, name in enumerate(KAIST_TEST)
            for number, person in enumerate(persons[name])
        ],
        "categories": [{"id": id_, "name": name} for id_, name in enumerate(names)],
    }


def write_mfnet(root: Path, first_seed: int = 100, size: tuple[int, int] = (640, 480)) -> dict[str, SceneFrame]:
    """Write images/ (red, green, blue, thermal), labels/ and the lists train, val and test; returns the frames."""
    frames = {}
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for list_name, names in MFNET_LISTS.items():
        (root / f"{list_name}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            frame, thermal = scene(first_seed + len(frames), size, night=name.endswith("N"))
            Image.fromarray(np.dstack([frame.rgb, thermal])).save(root / "images" / f"{name}.png")
            Image.fromarray(frame.mask).save(root / "labels" / f"{name}.png")
            frames[name] = frame
    return frames


def write_yolo(root: Path, names: Sequence[str] = ("0D", "1D", "2N"), size: tuple[int, int] = (64, 48)) -> None:
    """Write visible/, thermal/ and boxes/ of noise, one person, one car and nothing, and the lists train and val."""
    random = np.random.default_rng(0)
    for folder in ("visible", "thermal", "boxes"):
        (root / folder).mkdir(parents=True)
    boxes = ("0 0.5 0.5 0.25 0.5\n", "2 0.25 0.75 0.5 0.5\n", "")
    for index, name in enumerate(names):
        for folder, shape in (("visible", (size[1], size[0], 3)), ("thermal", (size[1], size[0]))):
            Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(root / folder / f"{name}.png")
        (root / "boxes" / f"{name}.txt").write_text(boxes[index % len(boxes)])
    (root / "train.txt").write_text("\n".join(names[:-1]) + "\n")
    (root / "val.txt").write_text(names[-1] + "\n")


def yolo_to_coco(root: Path, size: tuple[int, int] = (64, 48)) -> None:
    """Turn what write_yolo wrote into annotations/train.json and val.json, as annotation tools export them."""
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        images, annotations = [], []
        for id_, name in enumerate((root / f"{split}.txt").read_text().split()):
            images.append({"id": id_, "file_name": f"{name}.png", "width": size[0], "height": size[1]})
            for line in (root / "boxes" / f"{name}.txt").read_text().splitlines():
                label, *relative = map(float, line.split())
                x, y, width, height = (value * side for value, side in zip(relative, (*size, *size), strict=True))
                box = [x - width / 2, y - height / 2, width, height]
                annotations.append(
                    {"id": len(annotations), "image_id": id_, "category_id": int(label) + 1, "bbox": box, "iscrowd": 0}
                )
        categories = [{"id": id_ + 1, "name": name} for id_, name in enumerate(DETECTION.classes)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
        (root / f"{split}.txt").unlink()
    shutil.rmtree(root / "boxes")
