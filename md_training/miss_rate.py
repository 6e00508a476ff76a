"""Miss rate of a file of detections on KAIST's test set: the files on disk around `md_perception.metrics.miss_rate`."""

import logging
import math
import re
from collections.abc import Iterable
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np

from md_perception.annotations.kaist import IMPROVED_TEST_SHA256, read_test_annotations
from md_perception.metrics.miss_rate import (
    REFERENCES_FPPI,
    Bootstrap,
    MissRate,
    Rules,
    ScoredBoxes,
    kaist_miss_rates,
    table,
)
from md_perception.results import Detections

log = logging.getLogger(__name__)


def read_results(path: Path, images: int) -> list[ScoredBoxes]:
    """Read detections in KAIST's result format; return those of each image, in the order of the file.

    A line is `image,left,top,width,height,score`, by commas or blanks: image numbers from 1 in the order of the test
    list, boxes in px, 1-based (0-based corners plus 1). Empty lines are skipped.
    Raises ValueError, with the line, where it is not six finite numbers or the image's number is not 1..images, and
    where the file is no text.
    """
    rows: list[list[list[float]]] = [[] for _ in range(images)]
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text: expected a line image,left,top,width,height,score a detection") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            image, row = _result(line, images)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        rows[image - 1].append(row)
    arrays = [np.array(of_image, np.float64).reshape(-1, 5) for of_image in rows]
    return [ScoredBoxes(array[:, :4], array[:, 4]) for array in arrays]


def _result(line: str, images: int) -> tuple[int, list[float]]:
    fields = re.split(r"\s*,\s*|\s+", line.strip())
    try:
        values = [float(field) for field in fields]
    except ValueError:
        values = []
    if len(values) != 6:
        raise ValueError(f"{line.strip()[:80]!r} is not the six numbers image,left,top,width,height,score")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{line.strip()!r} has a value that is NaN or infinite: it cannot be ranked")
    image, *row = values
    if not image.is_integer() or not 1 <= image <= images:
        raise ValueError(
            f"image {fields[0]} is not one of 1 to {images}, the images of the annotations in the order of their names "
            "(numbers start at 1)"
        )
    return int(image), row


def write_results(path: Path, detections: Iterable[Detections], label: int) -> None:
    """Write the detections of one class in KAIST's result format, one item for each image of the test list, in order.

    Our boxes are 0-based corners, the format's are 1-based; one pixel off costs up to 0.9 points of miss rate.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lines:
        for number, found in enumerate(detections, start=1):
            mine = found.labels == label
            for (left, top, right, bottom), score in zip(
                found.boxes[mine].tolist(), found.scores[mine].tolist(), strict=True
            ):
                lines.write(
                    f"{number},{left + 1:.4f},{top + 1:.4f},{right - left:.4f},{bottom - top:.4f},{score:.8f}\n"
                )


def miss_rate_command(
    annotations: Path,
    detections: Path,
    json: bool = False,
    bootstrap: int = 0,
    seed: int = 0,
    rules: Rules = "matlab",
) -> None:
    """Score detections of persons on KAIST's test set: log-average miss rate, recall and counts of every setting.

    Args:
        annotations: KAIST_annotation.json, the improved test annotations.
        detections: Text file with a line `image,left,top,width,height,score` for each detection; images are counted
            from 1 in the order of test-all-20, boxes are 1-based.
        json: Print JSON instead of a table, with the miss rates at the nine references.
        bootstrap: Also give the 95 % interval over this many redraws of the images, e.g. 1000.
        seed: Of the redraws.
        rules: `matlab` is the benchmark's. `python2021` repeats three differences of a common script: only to explain a
            published number.
    """
    truth = read_test_annotations(annotations)
    if truth.sha256 != IMPROVED_TEST_SHA256:
        log.warning("%s is not the released file of improved test annotations: not comparable as KAIST", annotations)
    if rules != "matlab":
        log.warning("the rules %s explain published numbers; do not publish with them", rules)
    found = read_results(detections, len(truth.images))
    results = kaist_miss_rates(truth.truth, found, rules, Bootstrap(bootstrap, seed=seed) if bootstrap else None)
    if json:
        print(
            dumps(
                {
                    "annotations": {
                        "sha256": truth.sha256,
                        "released": truth.sha256 == IMPROVED_TEST_SHA256,
                        "images": len(truth.images),
                        "boxes": truth.boxes,
                    },
                    "detections": sum(len(of_image.scores) for of_image in found),
                    "rules": rules,
                    "unit": "percent",
                    **{name: _percent(result.miss_rate) for name, result in results.items()},
                    **{name.replace("MR2", "recall"): _percent(result.recall) for name, result in results.items()},
                    "details": {name: _details(result) for name, result in results.items()},
                },
                indent=2,
            )
        )
        return
    with_detections = sum(len(of_image.scores) > 0 for of_image in found)
    print(
        f"{annotations.name}: {len(truth.images)} images, {truth.boxes} boxes, SHA-256 {truth.sha256[:12]}\n"
        f"{detections.name}: {sum(len(of_image.scores) for of_image in found)} detections in {with_detections} images\n"
        f"rules: {rules}\n\n{table(results.values())}"
    )


def _details(result: MissRate) -> dict[str, Any]:
    """Return the counts and rates of one setting and subset, in percent."""
    return {
        "miss_rate": _percent(result.miss_rate),
        "interval_95": None if result.interval is None else [100 * end for end in result.interval],
        "recall": _percent(result.recall),
        "images": result.images,
        "persons": result.objects,
        "ignored_boxes": result.ignored_objects,
        "true_positives": result.true_positives,
        "false_positives": result.false_positives,
        "left_out": result.left_out,
        "references_fppi": REFERENCES_FPPI.tolist(),
        "miss_rate_at_references": (100 * result.reference_miss_rates).tolist(),
    }


def _percent(rate: float | None) -> float | None:
    return None if rate is None else 100 * rate
