"""`python -m md_perception.bags` and `ros2 run md_perception md_bag`: make, look at, play and extract bags."""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import FrameType

from md_perception.bags.make import RGB_CAMERA, THERMAL_CAMERA, BagOptions, make_from_pictures
from md_perception.bags.read import Bag
from md_perception.bags.thermal_options import add_thermal_options, thermal_settings
from md_perception.bags.types import UnknownTypeError
from md_perception.bags.write import STORAGES, BagError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0, 1 for a refused task, 130 for Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["play"]:  # needs a ROS graph, and has its own options
        from md_perception.ros.player import main as play

        return play(given[1:])
    options = _parser().parse_args(given)
    # However it is ended, a run leaves nothing half-done; a caller in the same process gets its handlers back.
    handlers = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return {"make": _make, "extract": _extract, "info": _info}[options.command](options)
    except (BagError, UnknownTypeError) as error:
        print(f"md_bag: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("md_bag: interrupted; nothing was left behind", file=sys.stderr)
        return 130
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _make(options: argparse.Namespace) -> int:
    started = time.monotonic()
    thermal = replace(
        THERMAL_CAMERA,
        topic=options.thermal_topic,
        frame_id=options.thermal_frame,
        encoding=options.thermal_encoding,
        rate_hz=options.thermal_rate,
        jitter_s=options.jitter,
    )
    rgb = replace(
        RGB_CAMERA,
        topic=options.rgb_topic,
        frame_id=options.rgb_frame,
        encoding=options.rgb_encoding,
        rate_hz=options.rgb_rate,
        jitter_s=options.jitter,
    )
    bag_options = BagOptions(
        rgb=rgb,
        thermal=thermal,
        thermal_size=options.thermal_size,
        resampling=options.thermal_resampling,
        range_k=tuple(options.thermal_range),
        offset_s=options.offset,
        hfov_deg=options.hfov,
        source_rate_hz=options.source_rate,
        max_frames=options.max_frames,
        seed=options.seed,
        start_ns=options.start_stamp,
        storage=options.storage,
        replace=options.force,
    )
    if options.scenes:
        if options.visible or options.thermal:
            raise BagError("--scenes makes its own pictures: leave out --visible and --thermal")
        from md_perception.bags.scenes import StreetOptions, make_from_scenes
        from md_perception.scenes import TimeOfDay

        streets = StreetOptions(
            frames=options.frames,
            street_frames=options.street_frames,
            size=options.scene_size,
            time_of_day=None if options.time_of_day is None else TimeOfDay(options.time_of_day),
        )
        summary = make_from_scenes(options.out, bag_options, streets)
    elif options.visible is not None:
        summary = make_from_pictures(options.visible, options.thermal, options.out, bag_options)
    else:
        raise BagError("say what the bag is made from: --visible FILE_OR_FOLDER [--thermal ...] or --scenes")
    for topic, count in summary.counts.items():
        print(f"  {count:6d}  {topic}")
    print(
        f"{summary.path}: {summary.duration_s:.2f} s of images, {summary.size_bytes / 1e6:.1f} MB, made in "
        f"{time.monotonic() - started:.1f} s"
    )
    return 0


def _extract(options: argparse.Namespace) -> int:
    from md_perception.bags.extract import ExtractOptions, extract

    started = time.monotonic()
    try:
        thermal = thermal_settings(options)
    except ValueError as error:
        raise BagError(str(error)) from None
    summary = extract(
        options.bag,
        options.out,
        ExtractOptions(
            rgb_topic=options.rgb_topic,
            thermal_topic=options.thermal_topic,
            detections_topic=options.detections_topic,
            mask_topic=options.mask_topic,
            tolerance_s=options.tolerance,
            offset_s=options.offset,
            thermal=thermal,
            homography=None if options.homography is None else tuple(options.homography),
            every=options.every,
            min_interval_s=options.min_interval,
            max_pairs=options.max_pairs,
            val_share=options.val,
            val_block_s=options.val_block,
            gap_s=options.gap,
            least_score=options.least_score,
            night=options.night,
            prefix=options.prefix,
            replace=options.replace,
        ),
    )
    print(f"{summary.text()}, in {time.monotonic() - started:.1f} s")
    return 0


def _info(options: argparse.Namespace) -> int:
    path: Path = options.bag
    with Bag(path) as bag:
        print(f"{path}: {bag.duration_s:.3f} s, from {bag.start_ns * 1e-9:.3f} to {bag.end_ns * 1e-9:.3f}")
        for topic in bag.topics.values():
            rate = (topic.count - 1) / bag.duration_s if topic.count > 1 and bag.duration_s else 0.0
            print(f"  {topic.count:6d}  {rate:6.2f} Hz  {topic.name}  {topic.msgtype}  {topic.qos.value}")
        if bag.damage:
            print(f"damaged: {bag.damage}", file=sys.stderr)
            return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="md_bag", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="list topics, counts and duration of a bag")
    info.add_argument("bag", type=Path)
    commands.add_parser("play", help="publish a bag over ROS with /clock (see `play --help`)", add_help=False)

    make = commands.add_parser(
        "make",
        help="write a bag from image folders, videos or the scene world",
        description="Write a rosbag2 of an RGB and a thermal camera.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    make.add_argument("--out", type=Path, required=True, metavar="BAG", help="folder of the bag")
    source = make.add_argument_group("source")
    source.add_argument("--visible", type=Path, metavar="FILE_OR_FOLDER", help="RGB video or folder of images")
    source.add_argument("--thermal", type=Path, metavar="FILE_OR_FOLDER", help="thermal video or folder of images")
    source.add_argument("--source-rate", type=float, metavar="HZ", help="pictures a second, where not a video's own")
    source.add_argument("--scenes", action="store_true", help="the scene world, with its truth on /truth/...")
    source.add_argument("--frames", type=int, default=300, help="RGB images of the scene world")
    source.add_argument("--street-frames", type=int, metavar="N", help="RGB images before a cut to another street")
    source.add_argument(
        "--scene-size", type=_size, default=(640, 512), metavar="WxH", help="RGB size of the scene world"
    )
    source.add_argument(
        "--time-of-day", choices=("day", "dusk", "night"), help="of all streets; not given: by the seed"
    )
    source.add_argument("--seed", type=int, default=0, help="of the scene world and of jitter")
    source.add_argument("--max-frames", type=int, metavar="N", help="RGB images at most")
    cameras = make.add_argument_group("cameras")
    cameras.add_argument("--thermal-size", type=_size, metavar="WxH", help="size of the thermal sensor")
    cameras.add_argument("--thermal-resampling", choices=("area", "bilinear"), default="area")
    cameras.add_argument("--thermal-encoding", choices=("mono8", "mono16"), default=THERMAL_CAMERA.encoding)
    cameras.add_argument(
        "--thermal-range",
        type=float,
        nargs=2,
        default=list(BagOptions.range_k),
        metavar="K",
        help="temperatures of the darkest and brightest grey of 8-bit pictures, for mono16 (centikelvin)",
    )
    cameras.add_argument("--rgb-encoding", choices=("rgb8", "bgr8"), default=RGB_CAMERA.encoding)
    cameras.add_argument("--rgb-topic", default=RGB_CAMERA.topic)
    cameras.add_argument("--thermal-topic", default=THERMAL_CAMERA.topic)
    cameras.add_argument("--rgb-frame", default=RGB_CAMERA.frame_id, help="frame id of the RGB camera")
    cameras.add_argument("--thermal-frame", default=THERMAL_CAMERA.frame_id, help="frame id of the thermal camera")
    cameras.add_argument("--hfov", type=float, metavar="DEG", help="horizontal field of view, for CameraInfo")
    times = make.add_argument_group("times")
    times.add_argument("--rgb-rate", type=float, metavar="HZ", help="RGB images a second")
    times.add_argument("--thermal-rate", type=float, metavar="HZ", help="thermal images a second")
    times.add_argument("--offset", type=float, default=0.0, metavar="S", help="added to the thermal stamps")
    times.add_argument("--jitter", type=float, default=0.0, metavar="S", help="standard deviation of the capture times")
    times.add_argument(
        "--start-stamp",
        type=_stamp_ns,
        default=BagOptions.start_ns,
        metavar="S",
        help="time of the first image, seconds since 1970, or `now`; the default is fixed (nanoseconds)",
    )
    file = make.add_argument_group("file")
    file.add_argument("--storage", choices=tuple(STORAGES), default="mcap")
    file.add_argument("--force", action="store_true", help="replace a bag that is there")
    _add_extract(
        commands.add_parser(
            "extract",
            help="turn a bag into a data set to train on",
            description="Write the RGB-thermal pairs of a bag, and the truth of a scene bag, as PNG files, in the "
            "folders that `python -m md_training` reads.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
    )
    return parser


def _add_extract(extract: argparse.ArgumentParser) -> None:
    extract.add_argument("bag", type=Path)
    extract.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the data set")
    extract.add_argument("--replace", action="store_true", help="replace a data set that was extracted before")
    topics = extract.add_argument_group("topics")
    topics.add_argument("--rgb-topic", help="not given: /rgb/image_raw, raw or compressed")
    topics.add_argument("--thermal-topic", help="not given: /thermal/image_raw, raw or compressed")
    topics.add_argument(
        "--detections-topic", metavar="TOPIC", help="boxes; not given: the truth of a scene bag, if any; '': none"
    )
    topics.add_argument("--mask-topic", metavar="TOPIC", help="masks; not given: the truth of a scene bag; '': none")
    topics.add_argument(
        "--least-score",
        type=float,
        default=0.5,
        help="objects below it are neither learnt nor background; the truth's score is the visible share",
    )
    cameras = extract.add_argument_group("cameras, as the node's parameters")
    cameras.add_argument("--tolerance", type=float, default=0.06, metavar="S", help="largest time between partners")
    cameras.add_argument("--offset", type=float, default=0.0, metavar="S", help="added to the thermal stamps")
    add_thermal_options(cameras)
    cameras.add_argument(
        "--homography", type=float, nargs=9, metavar="H", help="from RGB to thermal pixels; not given: same view"
    )
    choice = extract.add_argument_group("which pairs")
    choice.add_argument("--every", type=int, default=1, metavar="N", help="every Nth pair")
    choice.add_argument("--min-interval", type=float, default=0.0, metavar="S", help="least time between two pairs")
    choice.add_argument("--max-pairs", type=int, metavar="N", help="at most so many, spread over the drive")
    lists = extract.add_argument_group("lists")
    lists.add_argument("--val", type=float, default=0.0, metavar="SHARE", help="of the drive for val.txt, e.g. 0.2")
    lists.add_argument("--val-block", type=float, default=10.0, metavar="S", help="about how long each block of it is")
    lists.add_argument("--gap", type=float, default=1.0, metavar="S", help="left out between training and validation")
    lists.add_argument("--night", action="store_true", help="the drive was in the dark: name all pairs in night.txt")
    lists.add_argument("--prefix", default="", help="begins the names of the pairs, to put drives together")


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 160x120")
    return int(width), int(height)


def _stamp_ns(text: str) -> int:
    if text == "now":
        return time.time_ns()
    try:
        return int(Decimal(text) * 1_000_000_000)  # a float would round to a quarter of a microsecond
    except (InvalidOperation, ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither `now` nor seconds since 1970") from None


if __name__ == "__main__":
    sys.exit(main())
