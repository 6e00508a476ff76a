"""From a recorded drive to a data set: RGB-thermal pairs as PNG in the folders that md_training.data.yolo reads.

OUT/visible/NAME.png, thermal/NAME.png   a pair as the node would have got it; NAME is the stamp of the RGB image, ns
OUT/boxes/NAME.txt, classes.txt          where the bag has detections to learn from, as the truth of a scene bag
OUT/masks/NAME.png                       where it has masks
OUT/train.txt, val.txt                   lists of names
OUT/night.txt, homography.txt            if the options say so
OUT/md_index.json                        where every pair is from: stamps, topics, options, counts

Without boxes and masks it is a set of unlabelled pairs, for distillation without labels.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from md_perception.bags.make import Progress
from md_perception.bags.read import Bag, BagMessage
from md_perception.bags.results import TRUTH_DETECTIONS, TRUTH_MASK, CameraTopics, detections_of
from md_perception.bags.types import COMPRESSED_IMAGE, DETECTIONS, IMAGE
from md_perception.bags.write import BagError
from md_perception.labels import DETECTION, SEGMENTATION, UNLABELED_ID
from md_perception.results import Detections, UInt8Image
from md_perception.sensing.images import stamp_ns, to_rgb, to_thermal_values
from md_perception.sensing.pairing import (
    NearestPairing,
    Paired,
    PairingSettings,
    StampedMessage,
    Unpaired,
    UnpairedReason,
)
from md_perception.sensing.registration import sampling_matrix
from md_perception.sensing.thermal import ThermalNormaliser, ThermalSettings

INDEX = "md_index.json"
IGNORE = "ignore"
"""Last class of classes.txt: regions that are left out of the loss."""
HOPELESS = 10
"""When so many pairs were rejected and none was taken, the options are wrong and not the images."""

UNPAIRED: dict[UnpairedReason, str] = {
    "no_partner": "the nearest thermal image is farther than the tolerance",
    "waited": "no thermal image came in time",
    "time_jump": "the clock went back",
    "late": "recorded after a newer one had been paired",
    "overflow": "thermal was silent",
}

Side = Literal["train", "val"]


@dataclass(frozen=True)
class ExtractOptions:
    """What becomes of the bag.

    rgb_topic, thermal_topic: sensor_msgs/Image or CompressedImage; None: those of CameraTopics, or their /compressed.
    detections_topic (vision_msgs/Detection2DArray), mask_topic (mono8): with the stamps of the RGB images; None: the
    truth of a scene bag where it is there; an empty text: none.
    tolerance_s, offset_s, thermal, homography: as the node's parameters pairing.*, thermal.*, registration.homography.
    The gain control is that of each image by itself, as in training.
    every: 2 takes every second pair. min_interval_s: least time between two pairs. max_pairs: at most so many, spread
    over the drive. All times are those of the bag's recording.
    val_share: share of the drive for val.txt; 0: all is train.txt. It comes in blocks of about val_block_s, at least
    one; pairs within gap_s around a border between the lists are left out, for neighbours look alike.
    least_score: objects below it become `ignore`; in a scene bag the score is the share that is visible.
    night: the drive was in the dark. prefix: begins the names, so that drives can be put together.
    """

    rgb_topic: str | None = None
    thermal_topic: str | None = None
    detections_topic: str | None = None
    mask_topic: str | None = None
    tolerance_s: float = 0.06
    offset_s: float = 0.0
    thermal: ThermalSettings = field(default_factory=ThermalSettings)
    homography: tuple[float, ...] | None = None
    every: int = 1
    min_interval_s: float = 0.0
    max_pairs: int | None = None
    val_share: float = 0.0
    val_block_s: float = 10.0
    gap_s: float = 1.0
    least_score: float = 0.5
    night: bool = False
    prefix: str = ""
    replace: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if self.every < 1 or (self.max_pairs is not None and self.max_pairs < 1):
            raise BagError("every and max_pairs count pairs: at least 1")
        if min(self.tolerance_s, self.min_interval_s, self.gap_s) < 0 or self.val_block_s <= 0:
            raise BagError("tolerance, interval and gap must not be negative, nor a block of the validation list 0 s")
        if not 0 <= self.val_share < 1:
            raise BagError(f"a share of {self.val_share} for validation is not possible: 0 to below 1, e.g. 0.2")
        if not re.fullmatch(r"[\w-]*", self.prefix):
            raise BagError(f"{self.prefix!r} cannot begin a file's name: use letters, digits, _ and -")
        if self.homography is not None:
            try:
                sampling_matrix((1, 1), (1, 1), self.homography)
            except ValueError as error:
                raise BagError(str(error)) from None

    @property
    def pairing(self) -> PairingSettings:
        """The node's, but that nobody waits for a result: a partner may have been recorded late."""
        return PairingSettings(tolerance_ns=round(self.tolerance_s * 1e9), offset_ns=round(self.offset_s * 1e9))


@dataclass(frozen=True)
class Topics:
    """Where everything is in the bag; None: not there, or not wanted."""

    rgb: str
    thermal: str
    detections: str | None
    mask: str | None


@dataclass
class Counts:
    """What became of the RGB images: in the bag = extracted + unpaired + rejected + skipped. Reasons to numbers.

    rejected: images that cannot be decoded, or not by these options, and pairs without labels where others have them.
    thermal: thermal images in the bag. thermal_unreadable: of these, messages that are damaged.
    """

    rgb: int = 0
    extracted: int = 0
    unpaired: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    thermal: int = 0
    thermal_unreadable: int = 0


@dataclass(frozen=True)
class ExtractedPair:
    """A pair of the set. offset_ns: thermal stamp + constant offset - RGB stamp. size: (width, height) px of RGB."""

    name: str
    rgb_stamp_ns: int
    thermal_stamp_ns: int
    offset_ns: int
    size: tuple[int, int]
    thermal_size: tuple[int, int]
    list: Side


@dataclass(frozen=True)
class ExtractSummary:
    """What was written. lists: name to number of pairs. boxes, masks: pairs that have them; None: no such topic.
    damage: what is wrong with the bag, or None."""

    path: Path
    topics: Topics
    counts: Counts
    lists: dict[str, int]
    boxes: int | None
    masks: int | None
    damage: str | None

    def text(self) -> str:
        """Return the summary for a terminal."""
        counts = self.counts
        lines = [
            f"  {counts.rgb} RGB images in the bag = {counts.extracted} extracted + {counts.unpaired.total()} unpaired"
            f" + {counts.rejected.total()} rejected + {counts.skipped.total()} skipped",
            *_reasons("unpaired", counts.unpaired),
            *_reasons("rejected", counts.rejected),
            *_reasons("skipped", counts.skipped),
            f"  {counts.thermal} thermal images in the bag"
            + (f", {counts.thermal_unreadable} of them damaged" if counts.thermal_unreadable else ""),
            "  lists: " + ", ".join(f"{name}.txt with {count} pairs" for name, count in self.lists.items()),
        ]
        if self.boxes is None and self.masks is None:
            lines += ["  no labels in the bag: a set for distillation without labels, or to be labelled"]
        else:
            lines += [f"  labels: boxes of {self.boxes or 0} pairs, masks of {self.masks or 0}"]
        if self.damage:
            lines += [f"  the bag is damaged and was read up to there: {self.damage}"]
        lines += [f"{self.path}: {counts.extracted} pairs of {self.topics.rgb} and {self.topics.thermal}"]
        return "\n".join(lines)


def extract(bag: Path, out: Path, options: ExtractOptions | None = None) -> ExtractSummary:
    """Write the pairs of a bag as a data set, the whole or nothing: the folder takes its name at the end.

    A damaged bag is read as far as it goes; the summary says so. Raises BagError where nothing can be read, topics are
    missing, no pair is left, or something is at out that may not be replaced.
    """
    options = options or ExtractOptions()
    with Bag(bag) as source, _new_folder(out, options.replace) as folder:
        topics = find_topics(source, options)
        extraction = _Extraction(source, topics, folder, options)
        extraction.write_pairs()
        boxes, masks = extraction.write_labels()
        if not extraction.pairs:
            raise BagError(f"{bag} has no pair to extract: {_why_none(extraction.counts)}")
        lists = extraction.write_lists()
        summary = ExtractSummary(out, topics, extraction.counts, lists, boxes, masks, source.damage)
        _write(folder / INDEX, _index(bag, options, summary, extraction.pairs))
    return summary


def _index(bag: Path, options: ExtractOptions, summary: ExtractSummary, pairs: Collection[ExtractedPair]) -> bytes:
    """Return the index as JSON, a pair a line."""
    settings = asdict(options)
    del settings["replace"], settings["progress"]
    head = {
        "bag": bag.resolve().name,
        "topics": asdict(summary.topics),
        "options": settings,
        "counts": vars(summary.counts),
        "damage": summary.damage,
    }
    lines = ",\n".join(json.dumps(asdict(pair)) for pair in pairs)
    return f'{json.dumps(head, indent=1)[:-2]},\n "pairs": [\n{lines}\n]\n}}\n'.encode()


def find_topics(bag: Bag, options: ExtractOptions) -> Topics:
    """Return where the cameras and the labels are. Raises BagError, with the topics there are, where they are not."""

    def found(asked: str | None, usual: Collection[str], kinds: Collection[str]) -> str | None:
        for name in usual if asked is None else [asked]:
            topic = bag.topics.get(name)
            if topic is not None and topic.msgtype in kinds and topic.count:  # recorders leave empty topics behind
                return name
        if asked:
            there = [name for name, topic in bag.topics.items() if topic.msgtype in kinds]
            raise BagError(f"{bag.path} has no {' or '.join(kinds)} on {asked}; it has {', '.join(there) or 'none'}")
        return None

    images = (IMAGE, COMPRESSED_IMAGE)
    usual = CameraTopics()
    rgb = found(options.rgb_topic, (usual.rgb, f"{usual.rgb}/compressed"), images)
    thermal = found(options.thermal_topic, (usual.thermal, f"{usual.thermal}/compressed"), images)
    if rgb is None or thermal is None:
        there = [name for name, topic in bag.topics.items() if topic.msgtype in images]
        raise BagError(
            f"{bag.path} has no {usual.rgb if rgb is None else usual.thermal}; its images are on "
            f"{', '.join(there) or 'no topic'}: say which are the cameras (--rgb-topic, --thermal-topic)"
        )
    if rgb == thermal:
        raise BagError(f"{rgb} cannot be both cameras: --rgb-topic and --thermal-topic have to differ")
    return Topics(
        rgb,
        thermal,
        found(options.detections_topic, (TRUTH_DETECTIONS,), (DETECTIONS,)),
        found(options.mask_topic, (TRUTH_MASK,), images),
    )


class _Extraction:
    """One extraction on its way. pairs: what is in the folder. counts: what became of the RGB images so far."""

    def __init__(self, bag: Bag, topics: Topics, folder: Path, options: ExtractOptions) -> None:
        self._bag, self._topics, self._folder, self._options = bag, topics, folder, options
        self._normalise = ThermalNormaliser(options.thermal, topics.thermal)
        self._selection = _Selection(options, bag.start_ns, bag.end_ns)
        self._contents: set[bytes] = set()
        self.pairs: list[ExtractedPair] = []
        self.counts = Counts()

    def write_pairs(self) -> None:
        """Pair the images and write those that are wanted."""
        pairing: NearestPairing[StampedMessage] = NearestPairing(self._options.pairing)
        total = self._bag.topics[self._topics.rgb].count
        for camera in ("visible", "thermal"):
            (self._folder / camera).mkdir()
        with Progress(f"extracting from {self._bag.path}", total, self._options.progress) as progress:
            for item in self._bag.messages([self._topics.rgb, self._topics.thermal]):
                is_rgb = item.topic == self._topics.rgb
                if is_rgb:
                    self.counts.rgb += 1
                    progress.advance()
                else:
                    self.counts.thermal += 1
                try:
                    frame = StampedMessage(item, stamp_ns(item.message))
                except BagError:
                    if is_rgb:
                        self.counts.rejected["a damaged message"] += 1
                    else:
                        self.counts.thermal_unreadable += 1
                    continue
                # A clock that stands still: who reads a recording waits for nobody.
                if is_rgb:
                    pairing.add_rgb(frame, now_ns=0)
                else:
                    pairing.add_thermal(frame, now_ns=0)
                self._take(pairing.take(now_ns=0))
            self._take(pairing.flush(now_ns=0))

    def _take(self, decided: list[Paired[StampedMessage] | Unpaired[StampedMessage]]) -> None:
        for result in decided:
            if isinstance(result, Unpaired):
                self.counts.unpaired[UNPAIRED[result.reason]] += 1
                continue
            reason = self._selection.reason_to_skip(result.rgb.message, result.rgb.stamp_ns)
            if reason is not None:
                self.counts.skipped[reason] += 1
            else:
                self._write_pair(result)

    def _write_pair(self, pair: Paired[StampedMessage]) -> None:
        item: BagMessage = pair.rgb.message
        try:
            rgb = to_rgb(item.message, self._topics.rgb)
            thermal = self._normalise(pair.thermal.message.message)
        except ValueError as error:  # an ImageError, as in the node's pipeline
            self.counts.rejected[str(error)] += 1
            if not self.pairs and self.counts.rejected.total() >= HOPELESS:
                raise BagError(
                    f"the first {HOPELESS} pairs cannot be used: {error} (here: --thermal-encoding, "
                    "--thermal-polarity, --thermal-range)"
                ) from None
            return
        visible_png, thermal_png = _png(np.ascontiguousarray(rgb[..., ::-1])), _png(thermal)
        content = hashlib.sha256(visible_png + thermal_png).digest()
        if content in self._contents:
            self.counts.skipped["the same images as an earlier pair: a camera that stood still?"] += 1
            return
        self._contents.add(content)
        name = f"{self._options.prefix}{pair.rgb.stamp_ns}"
        _write(self._folder / "visible" / f"{name}.png", visible_png)
        _write(self._folder / "thermal" / f"{name}.png", thermal_png)
        self._selection.taken(item, pair.rgb.stamp_ns)
        self.counts.extracted += 1
        self.pairs.append(
            ExtractedPair(
                name=name,
                rgb_stamp_ns=pair.rgb.stamp_ns,
                thermal_stamp_ns=pair.thermal.stamp_ns,
                offset_ns=pair.offset_ns,
                size=(rgb.shape[1], rgb.shape[0]),
                thermal_size=(thermal.shape[1], thermal.shape[0]),
                list=self._selection.side(item.log_ns),
            )
        )

    def write_labels(self) -> tuple[int | None, int | None]:
        """Write boxes and masks of the pairs, and return how many pairs have each; None without such a topic.

        Where there are boxes, a pair without them would teach that nothing is there: it is taken out again.
        """
        by_stamp = {pair.rgb_stamp_ns: pair for pair in self.pairs}
        with_boxes: set[str] = set()
        with_mask: set[str] = set()
        for topic in filter(None, (self._topics.detections, self._topics.mask)):
            is_mask = topic == self._topics.mask
            (self._folder / ("masks" if is_mask else "boxes")).mkdir()
            for item in self._bag.messages([topic]):
                try:
                    pair = by_stamp.get(stamp_ns(item.message))
                except BagError:
                    continue  # damaged: its pair has no label
                if pair is None:
                    continue
                if is_mask:
                    _write(self._folder / "masks" / f"{pair.name}.png", _png(self._mask(item, pair)))
                else:
                    text = yolo_text(self._objects(item), pair.size, self._options.least_score)
                    _write(self._folder / "boxes" / f"{pair.name}.txt", text.encode())
                (with_mask if is_mask else with_boxes).add(pair.name)
            if self.pairs and not (with_mask if is_mask else with_boxes):
                raise BagError(f"{topic} has no message with the stamp of an extracted RGB image: leave it out ('')")
        if self._topics.detections is not None:
            _write(self._folder / "classes.txt", _lines([*DETECTION.classes, IGNORE]))
            self._take_out({pair.name for pair in self.pairs} - with_boxes, f"no message on {self._topics.detections}")
            with_mask &= with_boxes
        return (
            None if self._topics.detections is None else len(with_boxes),
            None if self._topics.mask is None else len(with_mask),
        )

    def _objects(self, item: BagMessage) -> Detections:
        try:
            return detections_of(item.message)
        except (KeyError, ValueError) as error:
            where = f"{item.topic}, stamp {stamp_ns(item.message)}"
            raise BagError(f"{where}: {error.args[0]}; mend its publisher, or leave the topic out") from None

    def _mask(self, item: BagMessage, pair: ExtractedPair) -> UInt8Image:
        try:
            mask = to_thermal_values(item.message, item.topic)  # one channel, as it is
        except ValueError as error:
            raise BagError(str(error)) from None
        if mask.dtype != np.uint8 or mask.shape != pair.size[::-1]:
            raise BagError(
                f"{item.topic}: a mask {mask.shape} of {mask.dtype} beside an RGB image of "
                f"{pair.size[0]}x{pair.size[1]} px: mono8 of that size is needed"
            )
        if mask[mask != UNLABELED_ID].max(initial=0) >= len(SEGMENTATION):
            raise BagError(
                f"{item.topic}: class id {mask[mask != UNLABELED_ID].max()} is outside {SEGMENTATION.name}, "
                f"0..{len(SEGMENTATION) - 1}: leave the masks out (--mask-topic '')"
            )
        return mask

    def _take_out(self, names: set[str], reason: str) -> None:
        for name in names:
            for file in self._folder.glob(f"*/{name}.*"):
                file.unlink()
        self.pairs = [pair for pair in self.pairs if pair.name not in names]
        self.counts.extracted -= len(names)
        if names:
            self.counts.rejected[reason] += len(names)

    def write_lists(self) -> dict[str, int]:
        """Write train.txt, val.txt, night.txt and homography.txt; return the sizes of the first two."""
        options = self._options
        sides: list[Side] = ["train", "val"] if options.val_share else ["train"]
        lists = {side: [pair.name for pair in self.pairs if pair.list == side] for side in sides}
        for side, names in lists.items():
            if not names:
                raise BagError(
                    f"no pair is left for {side}.txt: a drive of {self._bag.duration_s:.1f} s is short for a share of "
                    f"{options.val_share:g} and {options.gap_s:g} s left out between the lists; change --gap or --val"
                )
            _write(self._folder / f"{side}.txt", _lines(names))
        if options.night:
            _write(self._folder / "night.txt", _lines([pair.name for pair in self.pairs]))
        if options.homography is not None:
            rows = np.reshape(options.homography, (3, 3)).tolist()
            _write(self._folder / "homography.txt", _lines([" ".join(map(repr, row)) for row in rows]))
        return {side: len(names) for side, names in lists.items()}


class _Selection:
    """Which pairs are wanted, and on which list they are. start_ns, end_ns: of the bag."""

    def __init__(self, options: ExtractOptions, start_ns: int, end_ns: int) -> None:
        self._options = options
        self._start_ns, self._duration_s = start_ns, max((end_ns - start_ns) * 1e-9, 1e-9)
        share = options.val_share
        self._cycles = max(1, round(self._duration_s * share / options.val_block_s)) if share else 1
        self._seen = 0
        self._stamps: set[int] = set()
        self._ticks: set[int] = set()
        self._last_ns: int | None = None

    def reason_to_skip(self, item: BagMessage, stamp: int) -> str | None:
        """Say why a pair is not wanted; None: it is. Call it once for each pair, in their order."""
        options = self._options
        self._seen += 1
        if (self._seen - 1) % options.every:
            return f"one pair of {options.every} is taken"
        if stamp in self._stamps:
            return "the stamp of an earlier pair"
        if self._last_ns is not None and 0 <= item.log_ns - self._last_ns < options.min_interval_s * 1e9:
            return f"less than {options.min_interval_s:g} s after the last"
        if options.max_pairs is not None and self._tick(item.log_ns) in self._ticks:
            return f"at most {options.max_pairs} pairs are taken, spread over the drive"
        if options.val_share and self._border_distance_s(item.log_ns) < options.gap_s / 2:
            return f"within {options.gap_s:g} s between training and validation"
        return None

    def taken(self, item: BagMessage, stamp: int) -> None:
        """Note that a pair was written."""
        self._last_ns = item.log_ns
        self._stamps.add(stamp)
        if self._options.max_pairs is not None:
            self._ticks.add(self._tick(item.log_ns))

    def side(self, log_ns: int) -> Side:
        """Return the list of a pair: validation is at the end of each cycle."""
        if not self._options.val_share:
            return "train"
        cycles = self._share(log_ns) * self._cycles
        return "val" if cycles - self._cycle(log_ns) >= 1 - self._options.val_share else "train"

    def _border_distance_s(self, log_ns: int) -> float:
        """Return how far the nearest change from one list to the other is."""
        cycles, cycle = self._share(log_ns) * self._cycles, self._cycle(log_ns)
        borders = [cycle + 1 - self._options.val_share]
        borders += [cycle] if cycle > 0 else []
        borders += [cycle + 1] if cycle < self._cycles - 1 else []
        return min(abs(cycles - border) for border in borders) * self._duration_s / self._cycles

    def _tick(self, log_ns: int) -> int:
        ticks = self._options.max_pairs or 1
        return min(int(self._share(log_ns) * ticks), ticks - 1)

    def _cycle(self, log_ns: int) -> int:
        return min(int(self._share(log_ns) * self._cycles), self._cycles - 1)

    def _share(self, log_ns: int) -> float:
        """Return how much of the drive is over, 0..1."""
        return min(max((log_ns - self._start_ns) * 1e-9 / self._duration_s, 0.0), 1.0)


def yolo_text(objects: Detections, size: tuple[int, int], least_score: float = 0.0) -> str:
    """Return the lines of a YOLO file: `class centre_x centre_y width height`, relative to the image.

    size: (width, height) px. Boxes are clipped to the image, and left out where nothing is left of them; objects below
    least_score are of the class after the last of labels.DETECTION, which classes.txt calls IGNORE.
    """
    lines = []
    for box, score, label in zip(objects.boxes.astype(np.float64), objects.scores, objects.labels, strict=True):
        left, top, right, bottom = box.clip(0, [*size, *size])
        if right <= left or bottom <= top:
            continue
        number = int(label) if score >= least_score else len(DETECTION)
        centre = (left + right) / 2 / size[0], (top + bottom) / 2 / size[1]
        extent = (right - left) / size[0], (bottom - top) / size[1]
        lines.append(f"{number} " + " ".join(f"{value:.9f}" for value in (*centre, *extent)))
    return "".join(f"{line}\n" for line in lines)


def is_extracted(path: Path) -> bool:
    """Return whether a folder was written by `extract`."""
    return (path / INDEX).is_file()


@contextmanager
def _new_folder(path: Path, replace_it: bool) -> Iterator[Path]:
    """Give a hidden folder beside path that takes its place when the block ends well, and is removed otherwise."""
    _check_free(path, replace_it)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parent = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    except OSError as error:
        raise BagError(f"cannot write a data set at {path}: {error.strerror or error}") from None
    try:
        folder = parent / path.name
        folder.mkdir()
        yield folder
        _check_free(path, replace_it)  # something may have come to be there in the meantime
        if path.exists():
            path.rename(parent / "replaced")
        folder.rename(path)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _check_free(path: Path, replace_it: bool) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if path.is_dir() and not any(path.iterdir()):
        return
    if not replace_it:
        raise BagError(f"{path} is there already: choose another name or allow replacing it (--replace)")
    if not is_extracted(path):
        raise BagError(f"{path} was not written by extract (it has no {INDEX}): it will not be replaced")


def _png(image: UInt8Image) -> bytes:
    """Return a PNG. image: uint8 (h, w), or (H, W, 3) in BGR order."""
    _, data = cv2.imencode(".png", image)
    return data.tobytes()


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise BagError(f"cannot write {path.name}: {error.strerror or error}") from error


def _lines(texts: Collection[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def _reasons(title: str, reasons: Counter[str]) -> list[str]:
    """Return the most frequent reasons, a line each."""
    lines = [f"    {title}, {count}: {reason}" for reason, count in reasons.most_common(4)]
    return lines + ([f"    {title}: and {len(reasons) - 4} other reasons"] if len(reasons) > 4 else [])


def _why_none(counts: Counts) -> str:
    """Return what became of the RGB images, none of which was extracted."""
    if not counts.rgb or not counts.thermal:
        return f"it has {counts.rgb} RGB and {counts.thermal} thermal images"
    reasons = [*_reasons("unpaired", counts.unpaired), *_reasons("rejected", counts.rejected)]
    return "; ".join(reason.strip() for reason in [*reasons, *_reasons("skipped", counts.skipped)])
