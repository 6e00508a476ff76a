"""What an evaluation costs beside inference: `python -m md_perception.evaluation.benchmark [BAG --student FILE]`.

Reading, decoding, pairing and scoring on one core, in CPU time, with a student that infers once and says the same of
every frame. Without a bag, one of the scene world is made: RGB and thermal of 640x512 px, boxes and masks as truth.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from md_perception.bags.make import BagOptions
from md_perception.bags.scenes import StreetOptions, make_from_scenes
from md_perception.evaluation.chunks import Evaluator
from md_perception.evaluation.job import Job
from md_perception.inference.session import SessionSettings, Student
from md_perception.inference.student_file import DEMO_STUDENT, student_path
from md_perception.results import Float32Array, StudentOutput, UInt8Image


class _Absent(Student):
    """A student that looks at the first pair alone, and says the same of all."""

    said: StudentOutput | None = None

    def run(
        self, rgb: UInt8Image | None, thermal: UInt8Image | None = None, rgb_to_thermal: Float32Array | None = None
    ) -> StudentOutput:
        self.said = self.said or super().run(rgb, thermal, rgb_to_thermal)
        return self.said


def cost_ms(bag: Path, student: Path, with_results: bool = False) -> tuple[float, int]:
    """Return the CPU time of a frame without inference, ms, and the number of frames.

    with_results: also make the messages of the result bag.
    """

    def load(path: Path, digest: str, sessions: SessionSettings) -> Student:
        return _Absent.load(path, sessions)

    evaluator = Evaluator(Job({student.stem: student}, with_results=with_results), load)
    frames, started = 0, 0.0
    for _ in evaluator.evaluate(bag, bag.stem, workers=1):
        if frames == 0:  # opening, and the only inference, are behind
            started = time.process_time()
        frames += 1
    return 1e3 * (time.process_time() - started) / max(frames - 1, 1), frames


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the cost; return 0."""
    parser = argparse.ArgumentParser(prog="python -m md_perception.evaluation.benchmark", description=__doc__)
    parser.add_argument("bag", type=Path, nargs="?", metavar="BAG")
    parser.add_argument("--student", type=student_path, default=DEMO_STUDENT, metavar="FILE")
    parser.add_argument("--frames", type=int, default=120, metavar="N", help="of the bag that is made")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        bag = options.bag
        if bag is None:
            bag = Path(folder) / "scenes"
            made = BagOptions(thermal_size=(640, 512), progress=False)
            make_from_scenes(bag, made, StreetOptions(frames=options.frames, size=(640, 512)))
        for with_results, name in (
            (False, "reading, decoding, pairing, scoring"),
            (True, "the same, and the result bag"),
        ):
            milliseconds, frames = cost_ms(bag, options.student, with_results)
            print(f"{name}: {milliseconds:.1f} ms of CPU for a frame, without inference ({frames} frames)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
