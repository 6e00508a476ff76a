"""The node's parameters: one table that declares them, one frozen type that the node reads, one check for both.

`config/md.yaml` documents the same table for users; a test keeps the two in step.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.node import Node
from rclpy.parameter import Parameter

from md_perception.inference.session import SessionSettings
from md_perception.pipeline import PipelineSettings
from md_perception.results import Camera
from md_perception.ros.qos import Reliability
from md_perception.sensing.health import HealthSettings, WithoutThermal
from md_perception.sensing.misalignment import MisalignmentSettings
from md_perception.sensing.pairing import PairingSettings, Policy
from md_perception.sensing.registration import RegistrationSettings, Source, sampling_matrix
from md_perception.sensing.thermal import LARGEST, Polarity, ThermalSettings
from md_perception.sensing.thermal import Encoding as ThermalEncoding

_SHORT_TIMEOUT_S = 0.25
"""Two periods of a thermal camera of 8.7 Hz, and a little."""

Value = bool | int | float | str | list[int] | list[float] | list[str]


class ParameterError(ValueError):
    """A parameter whose value cannot be used; the message says which, why, and what is allowed."""


@dataclass(frozen=True)
class Declaration:
    """One parameter of the node.

    bounds: least and largest value, both allowed, for a number or each element of an array. choices: of a string.
    length: of an array. read_only: fixed when the node is started; the others may be set while it runs.
    """

    name: str
    default: Value
    description: str
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    length: int | None = None
    read_only: bool = False

    @property
    def field(self) -> str:
        """The attribute of `Parameters` that holds the value."""
        return self.name.replace(".", "_")

    def descriptor(self) -> ParameterDescriptor:
        """Return the descriptor that tools such as `ros2 param describe` show."""
        descriptor = ParameterDescriptor(description=self.description, read_only=self.read_only)
        if self.choices:
            descriptor.additional_constraints = "one of: " + ", ".join(repr(choice) for choice in self.choices)
        if self.bounds is not None and isinstance(self.default, float):
            low, high = self.bounds
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        elif self.bounds is not None and isinstance(self.default, int):
            low, high = (int(bound) for bound in self.bounds)
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
        return descriptor

    def check(self, value: Any) -> None:
        """Raise ParameterError where the value is not allowed."""
        if self.choices and value not in self.choices:
            raise ParameterError(f"{self.name} is {value!r}: use one of {', '.join(map(repr, self.choices))}")
        if self.length is not None and len(value) != self.length:
            raise ParameterError(f"{self.name} has {len(value)} elements: {self.length} are needed")
        numbers = value if isinstance(self.default, list) else [value]
        for number in numbers:
            if isinstance(number, float) and not math.isfinite(number):
                raise ParameterError(f"{self.name} is {number}: a finite number is needed")
            if self.bounds is not None and not self.bounds[0] <= number <= self.bounds[1]:
                raise ParameterError(
                    f"{self.name} is {number}: it must lie between {self.bounds[0]:g} and {self.bounds[1]:g}"
                )


def _camera(name: str) -> tuple[Declaration, ...]:
    return (
        Declaration(
            f"{name}.transport",
            "raw",
            f"how {name} images arrive: raw (sensor_msgs/Image on {name}/image_raw) or compressed "
            f"(sensor_msgs/CompressedImage on {name}/image_raw/compressed)",
            choices=("raw", "compressed"),
            read_only=True,
        ),
        Declaration(
            f"{name}.reliability",
            "auto",
            f"QoS of the {name} subscription; auto: reliable when every publisher offers it, best effort otherwise",
            choices=("auto", "reliable", "best_effort"),
            read_only=True,
        ),
        Declaration(
            f"{name}.queue_depth",
            5,
            f"QoS of the {name} subscription: images that the middleware keeps for a busy node",
            bounds=(1, 100),
            read_only=True,
        ),
        Declaration(
            f"{name}.minimum_rate_hz",
            0.0,
            f"{name} images a second, below which the camera is reported as slow; 0: half of the best rate so far",
            bounds=(0.0, 1000.0),
        ),
    )


TABLE: tuple[Declaration, ...] = (
    Declaration(
        "autostart",
        False,
        "configure and activate without being asked, and end with exit code 1 if that fails; for use without a launch "
        "file or a lifecycle manager",
        read_only=True,
    ),
    Declaration(
        "student.file",
        "",
        "file (.onnx) of the student, which runs on RGB and thermal, or on RGB alone if that is all it takes; empty: "
        "the demo student of this package",
        read_only=True,
    ),
    Declaration(
        "student.visible_file",
        "",
        "file (.onnx) of a student that runs on RGB alone, for the time when thermal is lost; empty: none",
        read_only=True,
    ),
    Declaration(
        "student.thermal_file",
        "",
        "file (.onnx) of a student that runs on thermal alone, for the time when RGB is lost; empty: none",
        read_only=True,
    ),
    Declaration(
        "student.providers",
        ["auto"],
        "ONNX Runtime execution providers in order of preference: cpu, cuda, tensorrt, or auto, which is cuda where it "
        "works, else cpu",
        read_only=True,
    ),
    Declaration(
        "student.threads",
        0,
        "threads of the CPU provider; 0: one for each physical core",
        bounds=(0, 256),
        read_only=True,
    ),
    Declaration(
        "student.warm_up_rgb_size",
        [0, 0],
        "width and height, px, of the RGB images that the student is warmed up for; zeros: those of its training",
        bounds=(0, 16384),
        length=2,
        read_only=True,
    ),
    Declaration(
        "student.warm_up_thermal_size",
        [0, 0],
        "width and height, px, of the thermal images that the student is warmed up for; zeros: those of its training",
        bounds=(0, 16384),
        length=2,
        read_only=True,
    ),
    Declaration(
        "score_threshold",
        0.3,
        "least score of a detection that is published; below the threshold in the student's manifest it has no effect",
        bounds=(0.0, 1.0),
    ),
    *_camera("rgb"),
    *_camera("thermal"),
    Declaration(
        "thermal.encoding",
        "auto",
        "what the values of thermal images mean: agc8 (8 bit, gain control in the camera), grey_rgb8 (the same in "
        "three equal channels), counts (raw 16 bit), centikelvin, decikelvin, centicelsius, centifahrenheit, kelvin, "
        "celsius, fahrenheit; auto: what the encoding of the messages says where that is unambiguous",
        choices=get_args(ThermalEncoding),
        read_only=True,
    ),
    Declaration(
        "thermal.polarity",
        "white_hot",
        "black_hot where the camera shows warm dark",
        choices=get_args(Polarity),
        read_only=True,
    ),
    Declaration(
        "thermal.range",
        [0.0, 0.0],
        "values, kelvin or counts, that become black and white; zeros: a gain control with the percentiles of training",
        bounds=(-LARGEST, LARGEST),
        length=2,
        read_only=True,
    ),
    Declaration(
        "thermal.time_constant_s",
        1.0,
        "inertia of that gain control, s; 0: each image by itself",
        bounds=(0.0, 600.0),
        read_only=True,
    ),
    Declaration(
        "thermal.minimum_span_counts",
        300.0,
        "counts that the gain control stretches at least: those of the 10 K of training",
        bounds=(1.0, 65535.0),
        read_only=True,
    ),
    Declaration(
        "registration.homography",
        [0.0] * 9,
        "homography from RGB pixels to thermal pixels of the images as they arrive, in row order (see md_calibrate); "
        "zeros: both cameras see the same field of view, so that thermal is only scaled",
        length=9,
        read_only=True,
    ),
    Declaration(
        "registration.sizes",
        [0] * 4,
        "width and height of the RGB and of the thermal images, px, that the homography was made for; images of other "
        "sizes are rejected; zeros: any",
        bounds=(0, 16384),
        length=4,
        read_only=True,
    ),
    Declaration(
        "registration.source",
        "homography",
        "homography (the parameter), or the camera_info messages of both cameras from one stereo calibration: "
        "camera_info_raw for images as the cameras take them, camera_info_rect for rectified images",
        choices=get_args(Source),
        read_only=True,
    ),
    Declaration(
        "registration.distance_m",
        0.0,
        "distance, m, at which the registration by camera_info is exact; 0: far away",
        bounds=(0.0, 10_000.0),
        read_only=True,
    ),
    Declaration(
        "registration.monitor_period_s",
        2.0,
        "how often the misalignment monitor compares the edges of a pair, s; 0: never",
        bounds=(0.0, 3600.0),
        read_only=True,
    ),
    Declaration(
        "registration.max_shift",
        0.015,
        "shift of thermal against RGB, share of the thermal image's width, above which the pair is reported as out of "
        "register",
        bounds=(0.002, 0.15),
        read_only=True,
    ),
    Declaration(
        "pairing.policy",
        "nearest",
        "how an RGB image finds its thermal partner: nearest (the nearest in time, may serve several RGB images), or "
        "message_filters' approximate or exact (each thermal image serves one RGB image)",
        choices=("nearest", "approximate", "exact"),
        read_only=True,
    ),
    Declaration("pairing.tolerance_s", 0.06, "largest distance in time of partners, s", bounds=(0.0, 10.0)),
    Declaration(
        "pairing.offset_s",
        0.0,
        "added to the stamps of thermal images before pairing, s; negative for a camera that stamps late",
        bounds=(-10.0, 10.0),
    ),
    Declaration(
        "pairing.max_wait_s",
        0.15,
        "longest that an RGB image waits for its partner after it arrived, s",
        bounds=(0.0, 10.0),
    ),
    Declaration(
        "pairing.capacity", 32, "most images of each camera that wait for a partner", bounds=(1, 1000), read_only=True
    ),
    Declaration(
        "health.timeout_s",
        1.0,
        "a camera that is silent for so long, s, is lost: the mode falls back to a student without it, or to STALE",
        bounds=(0.05, 60.0),
    ),
    Declaration(
        "health.recovery_pairs",
        3,
        "pairs, none of them later than health.timeout_s after the one before, after which fusion returns",
        bounds=(1, 1000),
    ),
    Declaration(
        "health.frozen_s",
        1.0,
        "a camera whose picture stays the same for so long, s, is lost (a shutter, a driver that hangs); 0: not looked "
        "at",
        bounds=(0.0, 60.0),
    ),
    Declaration(
        "health.without_thermal",
        "stop",
        "what happens without thermal and without student.visible_file: stop (nothing is published but status) or "
        "last_thermal (the fused student goes on with the last good thermal image)",
        choices=get_args(WithoutThermal),
    ),
    Declaration(
        "health.last_thermal_age_s",
        3.0,
        "last_thermal ends, s, after that image came; must be above health.timeout_s",
        bounds=(0.05, 60.0),
    ),
    Declaration(
        "health.failures_in_a_row",
        100,
        "frames without a result, one after the other, after which the node goes through ErrorProcessing to the "
        "unconfigured state (with autostart: ends with exit code 1); 0: never",
        bounds=(0, 1_000_000),
        read_only=True,
    ),
    Declaration(
        "queue_depth",
        4,
        "pairs that wait for the student while it keeps up with the camera; a slower one always takes the newest",
        bounds=(1, 100),
        read_only=True,
    ),
)


@dataclass(frozen=True)
class Parameters:
    """The values of all parameters, checked one by one and against each other.

    Fields are named as in the table, with dots as underscores; times in seconds, sizes (width, height) px.
    """

    autostart: bool
    student_file: str
    student_visible_file: str
    student_thermal_file: str
    student_providers: list[str]
    student_threads: int
    student_warm_up_rgb_size: list[int]
    student_warm_up_thermal_size: list[int]
    score_threshold: float
    rgb_transport: str
    rgb_reliability: Reliability
    rgb_queue_depth: int
    rgb_minimum_rate_hz: float
    thermal_transport: str
    thermal_reliability: Reliability
    thermal_queue_depth: int
    thermal_minimum_rate_hz: float
    thermal_encoding: ThermalEncoding
    thermal_polarity: Polarity
    thermal_range: list[float]
    thermal_time_constant_s: float
    thermal_minimum_span_counts: float
    registration_homography: list[float]
    registration_sizes: list[int]
    registration_source: Source
    registration_distance_m: float
    registration_monitor_period_s: float
    registration_max_shift: float
    pairing_policy: Policy
    pairing_tolerance_s: float
    pairing_offset_s: float
    pairing_max_wait_s: float
    pairing_capacity: int
    health_timeout_s: float
    health_recovery_pairs: int
    health_frozen_s: float
    health_without_thermal: WithoutThermal
    health_last_thermal_age_s: float
    health_failures_in_a_row: int
    queue_depth: int

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "Parameters":
        """Check the values of all parameters, by name. Raises ParameterError."""
        for declaration in TABLE:
            declaration.check(values[declaration.name])
        for name in ("student.warm_up_rgb_size", "student.warm_up_thermal_size"):
            if any(values[name]) and not all(values[name]):
                raise ParameterError(
                    f"{name} is {list(values[name])}: give width and height, or two zeros for the size of the training"
                )
        parameters = cls(**{declaration.field: values[declaration.name] for declaration in TABLE})
        try:
            parameters.session_settings()
            parameters.health_settings()
            parameters.pipeline_settings("", "")
            parameters.misalignment_settings()
            if parameters.homography is not None:
                sampling_matrix((1, 1), (1, 1), parameters.homography)
            if any(parameters.registration_sizes) and not all(parameters.registration_sizes):
                raise ParameterError(
                    f"registration.sizes is {parameters.registration_sizes}: give width and height of RGB and of "
                    "thermal, or four zeros for any"
                )
        except ValueError as error:
            raise ParameterError(str(error)) from None
        return parameters

    @property
    def homography(self) -> list[float] | None:
        """Nine numbers, or None for equal fields of view."""
        return self.registration_homography if any(self.registration_homography) else None

    @property
    def rgb_size(self) -> tuple[int, int] | None:
        """RGB size of the warm-up, None for that of training."""
        return _size(self.student_warm_up_rgb_size)

    @property
    def thermal_size(self) -> tuple[int, int] | None:
        """Thermal size of the warm-up, None for that of training."""
        return _size(self.student_warm_up_thermal_size)

    def image_topic(self, camera: Camera) -> str:
        """Return the topic of a camera's images, before remapping."""
        transport = self.rgb_transport if camera == "rgb" else self.thermal_transport
        return f"{camera}/image_raw/compressed" if transport == "compressed" else f"{camera}/image_raw"

    def session_settings(self) -> SessionSettings:
        """Return how students are run."""
        return SessionSettings(providers=tuple(self.student_providers), threads=self.student_threads)

    def pairing_settings(self) -> PairingSettings:
        """Return the bounds of pairing."""
        return PairingSettings(
            tolerance_ns=round(self.pairing_tolerance_s * 1e9),
            offset_ns=round(self.pairing_offset_s * 1e9),
            max_wait_ns=round(self.pairing_max_wait_s * 1e9),
            capacity=self.pairing_capacity,
        )

    def health_settings(self) -> HealthSettings:
        """Return when a camera is lost, and what is done then."""
        return HealthSettings(
            timeout_s=self.health_timeout_s,
            recovery_pairs=self.health_recovery_pairs,
            frozen_s=self.health_frozen_s,
            without_thermal=self.health_without_thermal,
            last_thermal_age_s=self.health_last_thermal_age_s,
            rgb_minimum_hz=self.rgb_minimum_rate_hz,
            thermal_minimum_hz=self.thermal_minimum_rate_hz,
        )

    def registration_settings(self) -> RegistrationSettings:
        """Return where the sampling matrix comes from."""
        rgb_width, rgb_height, width, height = self.registration_sizes
        return RegistrationSettings(
            source=self.registration_source,
            homography=self.homography,
            sizes=(rgb_width, rgb_height, width, height) if rgb_width else None,
            distance_m=self.registration_distance_m or math.inf,
        )

    def misalignment_settings(self) -> MisalignmentSettings:
        """Return when the pair is out of register."""
        return MisalignmentSettings(max_shift=self.registration_max_shift)

    def warnings(self) -> list[str]:
        """Return what is allowed but hardly meant, each with the cure."""
        found = []
        if self.pairing_policy == "nearest" and self.pairing_tolerance_s == 0:
            found.append(
                "pairing.tolerance_s is 0: only images with equal stamps are partners, which takes cameras with one "
                "trigger; half a thermal period (0.06 at 8.7 Hz) pairs every image"
            )
        if self.pairing_max_wait_s == 0:
            found.append(
                "pairing.max_wait_s is 0: an RGB image that comes before its thermal partner never gets it; 0.15 is "
                "enough for most cameras, and no image waits longer than it has to"
            )
        if self.health_timeout_s < _SHORT_TIMEOUT_S:
            found.append(
                f"health.timeout_s is {self.health_timeout_s:g}: a thermal camera of 8.7 Hz is lost whenever it misses "
                f"an image; {_SHORT_TIMEOUT_S:g} or more lets the mode stand"
            )
        return found

    def pipeline_settings(self, rgb_topic: str, thermal_topic: str) -> PipelineSettings:
        """Return the settings of the pipeline; the resolved topic names are for its error texts."""
        low, high = self.thermal_range
        return PipelineSettings(
            pairing=self.pairing_settings(),
            thermal=ThermalSettings(
                encoding=self.thermal_encoding,
                polarity=self.thermal_polarity,
                range=(low, high) if any(self.thermal_range) else None,
                time_constant_s=self.thermal_time_constant_s,
                minimum_span_counts=self.thermal_minimum_span_counts,
            ),
            registration=self.registration_settings(),
            score_threshold=self.score_threshold,
            rgb_topic=rgb_topic,
            thermal_topic=thermal_topic,
        )


def declare(node: Node) -> None:
    """Declare every parameter of the table on the node, and let integers stand for floats when they are set.

    Raises rclpy's InvalidParameterTypeException or InvalidParameterValueException for an override of the wrong type or
    out of range.
    """
    for declaration in TABLE:
        node.declare_parameter(declaration.name, declaration.default, declaration.descriptor())
    node.add_pre_set_parameters_callback(_with_floats)


def hint(error: Exception) -> str:
    """Return what to write instead, for an error of `declare`; "" where that is plain."""
    if isinstance(error, InvalidParameterTypeException) and "INTEGER" in str(error) and "DOUBLE" in str(error):
        return "; write the number with a decimal point (1.0 for 1)"
    return ""


def _with_floats(given: list[Parameter]) -> list[Parameter]:
    """Return parameters to be set, with floats for the integers that people write for them."""
    floats = {d.name for d in TABLE if isinstance(d.default, float)}
    float_arrays = {d.name for d in TABLE if isinstance(d.default, list) and isinstance(d.default[0], float)}
    return [
        Parameter(p.name, value=float(p.value))
        if p.name in floats and p.type_ == Parameter.Type.INTEGER
        else Parameter(p.name, value=[float(number) for number in p.value])
        if p.name in float_arrays and p.type_ == Parameter.Type.INTEGER_ARRAY
        else p
        for p in given
    ]


def read(node: Node) -> Parameters:
    """Read all parameters from the node. Raises ParameterError."""
    return Parameters.from_values({d.name: _plain(node.get_parameter(d.name).value) for d in TABLE})


def check_change(node: Node, changed: list[Parameter]) -> SetParametersResult:
    """Say whether the changed parameters go together with the others, and why not; for on_set_parameters callbacks."""
    values = {d.name: _plain(node.get_parameter(d.name).value) for d in TABLE}
    values |= {parameter.name: _plain(parameter.value) for parameter in changed if parameter.name in values}
    try:
        Parameters.from_values(values)
    except ParameterError as error:
        return SetParametersResult(successful=False, reason=str(error))
    return SetParametersResult(successful=True)


def _plain(value: Any) -> Any:
    """Arrays come as array.array or as a list."""
    return list(value) if not isinstance(value, bool | int | float | str) else value


def _size(values: list[int]) -> tuple[int, int] | None:
    return (values[0], values[1]) if any(values) else None
