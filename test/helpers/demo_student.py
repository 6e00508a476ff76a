"""The demo student on frames of the scene world, as the node runs it on cameras of 640x512 and 160x128."""

from functools import cache

from md_perception.inference.session import SessionSettings, Student
from md_perception.inference.student_file import DEMO_STUDENT
from md_perception.results import StudentOutput
from md_perception.scenes import RgbView, Scene, render_thermal
from md_perception.sensing.registration import sampling_matrix
from md_perception.sensing.thermal import percentile_range, resize_to_sensor, to_8bit

SIZE = (640, 512)
THERMAL_SIZE = (160, 128)
SCORE_THRESHOLD = 0.3
"""The node's."""


@cache
def demo_student() -> Student:
    """Return the demo student on one thread of the CPU."""
    return Student.load(DEMO_STUDENT, SessionSettings(providers=("cpu",), threads=1))


def perceive(scene: Scene, view: RgbView) -> StudentOutput:
    """Return what it says of a frame; the scene is rendered in thermal for it."""
    kelvin = resize_to_sensor(render_thermal(scene, view.time_s).kelvin, THERMAL_SIZE, "area")
    thermal = to_8bit(kelvin, *percentile_range(kelvin))
    return demo_student().run(view.image, thermal, sampling_matrix(SIZE, THERMAL_SIZE))
