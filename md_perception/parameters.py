"""The node's parameters: one table that declares them, one frozen type that is read, one check for both.

The node takes them from ROS (ros.parameters), the evaluation of bags from the same YAML files. `config/md.yaml`
documents the table for users; a test keeps the two in step.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from md_perception.inference.session import SessionSettings
from md_perception.inference.student_file import DEMO_STUDENT, DEMO_VISIBLE_STUDENT, student_path
from md_perception.outputs import autoware
from md_perception.outputs.ground import CameraPose, ClassGroup, GroundSettings
from md_perception.outputs.navigation import (
    CameraImages,
    DepthSource,
    Evidence,
    GroundSource,
    MaskEncoding,
    NavigationSettings,
    ObstacleOutput,
    OutputFrame,
    TrackerName,
)
from md_perception.pipeline import PipelineSettings
from md_perception.results import Camera
from md_perception.sensing.health import HealthSettings, WithoutThermal
from md_perception.sensing.misalignment import MisalignmentSettings
from md_perception.sensing.pairing import PairingSettings, Policy
from md_perception.sensing.registration import RegistrationSettings, Source, sampling_matrix
from md_perception.sensing.thermal import LARGEST, Polarity, ThermalSettings
from md_perception.sensing.thermal import Encoding as ThermalEncoding

_SHORT_TIMEOUT_S = 0.25
"""Two periods of a thermal camera of 8.7 Hz, and a little."""

Reliability = Literal["auto", "reliable", "best_effort"]
"""What the QoS of a camera's subscription is to be; `auto` follows the publishers."""

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


def _ground() -> tuple[Declaration, ...]:
    return (
        Declaration(
            "ground.source",
            "off",
            "where the camera's place above the ground comes from, for obstacles in metres: off (no obstacles), "
            "mounting (the two parameters below) or tf (the transform from the image's frame to ground.base_frame)",
            choices=get_args(GroundSource),
            read_only=True,
        ),
        Declaration(
            "ground.mounting_position",
            [0.0, 0.0, 1.0],
            "x, y, z of the RGB camera in ground.base_frame, m",
            bounds=(-100.0, 100.0),
            length=3,
            read_only=True,
        ),
        Declaration(
            "ground.mounting_angles",
            [0.0, 0.0, 0.0],
            "roll, pitch, yaw of the RGB camera in ground.base_frame, degrees; zeros look straight ahead, a positive "
            "pitch down, a positive yaw to the left",
            bounds=(-180.0, 180.0),
            length=3,
            read_only=True,
        ),
        Declaration(
            "ground.base_frame",
            "base_footprint",
            "frame of the vehicle whose x axis points ahead and z axis up (REP 103, REP 105)",
            read_only=True,
        ),
        Declaration(
            "ground.z_m",
            0.0,
            "height of the ground in ground.base_frame, m",
            bounds=(-10.0, 10.0),
            read_only=True,
        ),
        Declaration(
            "ground.tf_timeout_s",
            0.05,
            "longest that a result waits for the transform at its time, s",
            bounds=(0.0, 1.0),
            read_only=True,
        ),
        Declaration(
            "ground.images",
            "raw",
            "whether the RGB images are raw or rectified: which half of camera_info describes them",
            choices=get_args(CameraImages),
            read_only=True,
        ),
        Declaration(
            "ground.output_frame",
            "base",
            "frame of obstacle clouds: base (ground.base_frame) or camera (the image's frame)",
            choices=get_args(OutputFrame),
            read_only=True,
        ),
        Declaration(
            "ground.groups",
            ["people=person", "vehicles=car,bicycle,bike", "things=guardrail,color_cone,car_stop"],
            "class groups (name=class,class), each a cloud on obstacles/<name>; classes of detections and of masks",
            read_only=True,
        ),
        Declaration(
            "ground.evidence",
            "both",
            "what obstacles are made from: detections, mask, both, or complementary (detections, and the mask for "
            "classes that are not detected)",
            choices=get_args(Evidence),
            read_only=True,
        ),
        Declaration("ground.scan", False, "publish all groups as a LaserScan on obstacles/scan too", read_only=True),
        Declaration(
            "ground.depth",
            "off",
            "registered depth that places obstacles instead of the flat ground: off, image (depth/image) or cloud "
            "(depth/points, organised)",
            choices=get_args(DepthSource),
            read_only=True,
        ),
        Declaration(
            "ground.depth_tolerance_s",
            0.05,
            "largest distance in time of an image and its depth, s",
            bounds=(0.0, 1.0),
            read_only=True,
        ),
        Declaration(
            "ground.max_range_m",
            20.0,
            "distance from the camera beyond which no obstacle is placed, m",
            bounds=(0.5, 1000.0),
            read_only=True,
        ),
        Declaration(
            "ground.horizon_margin_deg",
            1.0,
            "rays that fall by less than this meet no ground, degrees",
            bounds=(0.0, 45.0),
            read_only=True,
        ),
        Declaration(
            "ground.pixel_sigma_px",
            2.5,
            "standard deviation of an obstacle's foot in the image, px",
            bounds=(0.0, 1000.0),
            read_only=True,
        ),
        Declaration(
            "ground.box_sigma",
            0.02,
            "what is added to it for a box, as a share of the box's height",
            bounds=(0.0, 1.0),
            read_only=True,
        ),
        Declaration(
            "ground.pitch_sigma_deg",
            0.3,
            "standard deviation of the camera's pitch against the ground, degrees: suspension, slopes, calibration",
            bounds=(0.0, 45.0),
            read_only=True,
        ),
        Declaration(
            "ground.depth_sigma",
            0.02,
            "standard deviation of depth, as a share of it",
            bounds=(0.0, 1.0),
            read_only=True,
        ),
        Declaration(
            "ground.spacing_m",
            0.1,
            "side of the squares that get one point at most, m",
            bounds=(0.01, 10.0),
            read_only=True,
        ),
        Declaration(
            "ground.max_points",
            2000,
            "most points of a cloud; the nearest are kept",
            bounds=(1, 1_000_000),
            read_only=True,
        ),
        Declaration(
            "ground.point_height_m",
            0.5,
            "height of the points above the ground, m; between Nav2's min_obstacle_height and max_obstacle_height",
            bounds=(0.0, 10.0),
            read_only=True,
        ),
        Declaration(
            "ground.mask_minimum_px",
            4,
            "pixels of a class group that a column of the mask needs to be an obstacle",
            bounds=(1, 10_000),
            read_only=True,
        ),
        Declaration(
            "ground.mask_minimum_confidence",
            0.8,
            "probability from which a pixel of the mask counts for obstacles",
            bounds=(0.0, 1.0),
            read_only=True,
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
        "file (.onnx) of the student, which runs on RGB and thermal, or on RGB alone if that is all it takes; empty or "
        "demo: the demo student of this package",
        read_only=True,
    ),
    Declaration(
        "student.visible_file",
        "",
        "file (.onnx) of a student that runs on RGB alone, for the time when thermal is lost; empty: none; demo: that "
        "of this package",
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
        "student.max_batch",
        0,
        "most images of several cameras in one process (md_cameras) that the student answers at once; 0: 1 on a CPU, "
        "which gains nothing by more, 4 on a GPU",
        bounds=(0, 64),
        read_only=True,
    ),
    Declaration(
        "student.cuda_graphs",
        True,
        "launch a student of fixed shapes (export --fixed) on a GPU as one graph",
        read_only=True,
    ),
    Declaration(
        "student.engine_cache",
        "",
        "folder of the engines that TensorRT builds; it must belong to the user that the node runs as, and nobody else "
        "may write to it; empty: ~/.cache/md_perception/tensorrt",
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
        "segmentation.mask_encoding",
        "raw",
        "raw (mono8 on segmentation/mask, for Nav2 and people) or autoware_rle (run lengths of Autoware's ids on "
        "autoware/mask, which nothing else can read)",
        choices=get_args(MaskEncoding),
        read_only=True,
    ),
    Declaration(
        "segmentation.size",
        [0, 0],
        "width and height, px, at which mask and confidence are published: those of a depth camera that is registered "
        "to the RGB camera, for Nav2's semantic segmentation layer; zeros: those of the image",
        bounds=(0, 16384),
        length=2,
        read_only=True,
    ),
    Declaration(
        "autoware.mask_labels",
        ["car=vehicle", "person=person", "bike=bike", "curve=curbstone"],
        "Autoware's mask label of each class that has one (class=label); the others become obstacle, so that nothing "
        "unknown passes for road",
        read_only=True,
    ),
    Declaration(
        "autoware.objects",
        False,
        "publish detections as tier4_perception_msgs/DetectedObjectsWithFeature on autoware/objects too",
        read_only=True,
    ),
    Declaration(
        "autoware.object_labels",
        ["person=PEDESTRIAN", "bicycle=BICYCLE", "car=CAR"],
        "Autoware's object label of each class that has one (class=LABEL); the others are UNKNOWN",
        read_only=True,
    ),
    *_ground(),
    Declaration(
        "tracking.tracker",
        "off",
        "who gives detections an id that stays the same from image to image: off (nobody) or norfair (pip install "
        "norfair-enough)",
        choices=get_args(TrackerName),
        read_only=True,
    ),
    Declaration(
        "tracking.lost_s",
        2.0,
        "an object is given up when it was not detected for so long, s; above health.timeout_s, ids survive a change "
        "of mode",
        bounds=(0.1, 60.0),
        read_only=True,
    ),
    Declaration(
        "tracking.overlap",
        0.2,
        "least intersection over union of a detection with where the object is expected",
        bounds=(0.01, 0.99),
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
    student_max_batch: int
    student_cuda_graphs: bool
    student_engine_cache: str
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
    segmentation_mask_encoding: MaskEncoding
    segmentation_size: list[int]
    autoware_mask_labels: list[str]
    autoware_objects: bool
    autoware_object_labels: list[str]
    ground_source: GroundSource
    ground_mounting_position: list[float]
    ground_mounting_angles: list[float]
    ground_base_frame: str
    ground_z_m: float
    ground_tf_timeout_s: float
    ground_images: CameraImages
    ground_output_frame: OutputFrame
    ground_groups: list[str]
    ground_evidence: Evidence
    ground_scan: bool
    ground_depth: DepthSource
    ground_depth_tolerance_s: float
    ground_max_range_m: float
    ground_horizon_margin_deg: float
    ground_pixel_sigma_px: float
    ground_box_sigma: float
    ground_pitch_sigma_deg: float
    ground_depth_sigma: float
    ground_spacing_m: float
    ground_max_points: int
    ground_point_height_m: float
    ground_mask_minimum_px: int
    ground_mask_minimum_confidence: float
    tracking_tracker: TrackerName
    tracking_lost_s: float
    tracking_overlap: float
    queue_depth: int

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "Parameters":
        """Check the values of all parameters, by name. Raises ParameterError."""
        for declaration in TABLE:
            declaration.check(values[declaration.name])
        for name, else_size in (
            ("student.warm_up_rgb_size", "the size of the training"),
            ("student.warm_up_thermal_size", "the size of the training"),
            ("segmentation.size", "that of the image"),
        ):
            if any(values[name]) and not all(values[name]):
                raise ParameterError(
                    f"{name} is {list(values[name])}: give width and height, or two zeros for {else_size}"
                )
        parameters = cls(**{declaration.field: values[declaration.name] for declaration in TABLE})
        try:
            parameters.session_settings()
            parameters.health_settings()
            parameters.pipeline_settings("", "")
            parameters.misalignment_settings()
            parameters.navigation_settings()
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

    @classmethod
    def defaults(cls) -> "Parameters":
        """Return the values that hold where nothing is said."""
        return cls.from_values({declaration.name: declaration.default for declaration in TABLE})

    @classmethod
    def read(cls, path: Path | None = None, changes: Mapping[str, str] | None = None) -> "Parameters":
        """Read a parameter file of the node, such as config/md.yaml; what it does not say has its default.

        Every node's section of the file is read, as if its name fitted; `use_sim_time` and `qos_overrides` are passed
        over. changes: values beside the file, by name, written as in YAML.
        Raises ParameterError where the file cannot be read, or for what the node would refuse.
        """
        values = {declaration.name: declaration.default for declaration in TABLE}
        if path is not None:
            values |= _checked(dict(_flat(_sections(path, _yaml(_text(path), str(path))))), f"{path}: ")
        values |= _checked({name: _yaml(text, name) for name, text in (changes or {}).items()}, "")
        return cls.from_values(values)

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

    def student_files(self) -> dict[str, Path]:
        """Return the files of the students by parameter, student.file first; `demo` names one of this package."""
        named = {
            "student.file": (self.student_file or "demo", DEMO_STUDENT),
            "student.visible_file": (self.student_visible_file, DEMO_VISIBLE_STUDENT),
            "student.thermal_file": (self.student_thermal_file, None),
        }
        return {parameter: student_path(name, demo) for parameter, (name, demo) in named.items() if name}

    def session_settings(self) -> SessionSettings:
        """Return how students are run."""
        return SessionSettings(
            providers=tuple(self.student_providers),
            threads=self.student_threads,
            max_batch=self.student_max_batch,
            cuda_graphs=self.student_cuda_graphs,
            engine_cache=Path(self.student_engine_cache).expanduser() if self.student_engine_cache else None,
            rgb_size=self.rgb_size,
            thermal_size=self.thermal_size,
        )

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

    def navigation_settings(self) -> NavigationSettings:
        """Return what is published for navigation stacks beside detections and mask."""
        mask_labels = _checked_labels("autoware.mask_labels", self.autoware_mask_labels, autoware.MASK_LABELS)
        object_labels = _checked_labels("autoware.object_labels", self.autoware_object_labels, autoware.OBJECT_LABELS)
        return NavigationSettings(
            mask_encoding=self.segmentation_mask_encoding,
            mask_size=_size(self.segmentation_size),
            mask_labels=mask_labels,
            object_labels=object_labels if self.autoware_objects else None,
            obstacles=self._obstacle_output(),
            tracker=self.tracking_tracker,
            track_lost_s=self.tracking_lost_s,
            track_overlap=self.tracking_overlap,
        )

    def _obstacle_output(self) -> ObstacleOutput:
        x, y, z = self.ground_mounting_position
        roll, pitch, yaw = (math.radians(angle) for angle in self.ground_mounting_angles)
        return ObstacleOutput(
            source=self.ground_source,
            base_frame=self.ground_base_frame,
            ground_z_m=self.ground_z_m,
            mounting=replace(CameraPose.mounted((x, y, z), (roll, pitch, yaw)), ground_z_m=self.ground_z_m),
            tf_timeout_s=self.ground_tf_timeout_s,
            images=self.ground_images,
            output_frame=self.ground_output_frame,
            groups=tuple(ClassGroup.parse(text) for text in self.ground_groups),
            evidence=self.ground_evidence,
            scan=self.ground_scan,
            depth=self.ground_depth,
            depth_tolerance_ns=round(self.ground_depth_tolerance_s * 1e9),
            ground=GroundSettings(
                max_range_m=self.ground_max_range_m,
                horizon_margin_rad=math.radians(self.ground_horizon_margin_deg),
                pixel_sigma_px=self.ground_pixel_sigma_px,
                box_sigma=self.ground_box_sigma,
                pitch_sigma_rad=math.radians(self.ground_pitch_sigma_deg),
                depth_sigma=self.ground_depth_sigma,
                spacing_m=self.ground_spacing_m,
                max_points=self.ground_max_points,
                point_height_m=self.ground_point_height_m,
                mask_minimum_px=self.ground_mask_minimum_px,
                mask_minimum_confidence=self.ground_mask_minimum_confidence,
            ),
        )

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
        if self.tracking_tracker != "off" and self.tracking_lost_s <= self.health_timeout_s:
            found.append(
                f"tracking.lost_s is {self.tracking_lost_s:g}, not above health.timeout_s: ids do not survive a change "
                "of mode, before which there are no results for that long"
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


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path} cannot be read as a parameter file: {error}") from None


def _yaml(text: str, place: str) -> Any:
    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ParameterError(f"{place} is no YAML: {error}") from None


def _checked(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the values that the table declares. Raises ParameterError for others, and for those of another type."""
    declared = {declaration.name: declaration for declaration in TABLE}
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name == "use_sim_time" or name.startswith("qos_overrides."):
            continue
        if name not in declared:
            raise ParameterError(f"{place}there is no parameter {name}; config/md.yaml has them all")
        default = declared[name].default
        if not _is_like(value, default):
            hint = "; write the number with a decimal point (1.0 for 1)" if type(value) is int else ""
            raise ParameterError(f"{place}{name} is {value!r}, which is not of the type of {default!r}{hint}")
        found[name] = value
    return found


def _sections(path: Path, content: Any) -> dict[str, Any]:
    """Return the parameters of all nodes of a file, nested."""
    found: dict[str, Any] = {}
    sections = list(content.values()) if isinstance(content, dict) else []
    while sections:
        section = sections.pop(0)
        if not isinstance(section, dict):
            raise ParameterError(f"{path} is no parameter file: expected `/**:` and below it `ros__parameters:`")
        if "ros__parameters" in section:
            found |= section["ros__parameters"] or {}
        else:
            sections += section.values()  # of a namespace
    if not found:
        raise ParameterError(f"{path} has no parameters: expected `/**:` and below it `ros__parameters:`")
    return found


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_like(value: Any, default: Value) -> bool:
    """Return whether ROS would take a value for a parameter with this default: its types are strict."""
    if isinstance(default, list):
        return isinstance(value, list) and all(type(one) is type(default[0]) for one in value)
    return type(value) is type(default)


def _checked_labels(name: str, texts: Sequence[str], labels: Mapping[str, int]) -> tuple[tuple[str, str], ...]:
    """Return pairs of class and label. name: of the parameter. Raises ParameterError."""
    try:
        mapping = autoware.parse_mapping(texts, labels)
    except ValueError as error:
        raise ParameterError(f"{name}: {error}") from None
    return tuple(mapping.items())


def _size(values: list[int]) -> tuple[int, int] | None:
    return (values[0], values[1]) if any(values) else None
