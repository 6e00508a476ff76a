"""Obstacles in metres: geometry by hand, by the lens model the other way round, and by the scene world's truth."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from ground_cameras import look_down, of_scene, pinhole, project
from hypothesis import given
from hypothesis import strategies as st
from scene_feet import contact_m

from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.outputs.ground import (
    CameraPose,
    ClassGroup,
    GroundModel,
    GroundPoints,
    GroundSettings,
    ObstacleFinder,
)
from md_perception.results import Detections, Segmentation, UInt8Image
from md_perception.scenes import SceneSettings, render_rgb, sample_scene
from md_perception.scenes.people import Person

PERSON = SEGMENTATION.id_of("person")
ON_GROUND = GroundSettings(point_height_m=0.0)
FAR = GroundSettings(max_range_m=1e4, horizon_margin_rad=0.0, point_height_m=0.0)


def model(pitch_deg: float = 0.0, roll_deg: float = 0.0, settings: GroundSettings = ON_GROUND, **camera) -> GroundModel:
    return GroundModel(pinhole(**camera), look_down(1.5, pitch_deg, roll_deg), settings)


# -- from pixels to the ground -----------------------------------------------------------------------------------------


def test_a_level_camera_sees_the_ground_where_it_has_to() -> None:
    # 90 rows below the horizon (row 255.5) at 600 px: 1.5 * 600 / 90 = 10 m; 120 columns to the right: 2 m.
    found = model().at([[319.5, 345.5], [439.5, 345.5]])
    np.testing.assert_allclose(found.xyz, [[10, 0, 0], [10, -2, 0]], atol=1e-5)


def test_the_sigma_is_that_of_one_row_and_of_the_pitch() -> None:
    # At 20 m one pixel is 0.44 m: 20 * 20 / (600 * 1.5).
    of_a_pixel = model(settings=replace(ON_GROUND, pixel_sigma_px=1.0, pitch_sigma_rad=0.0, max_range_m=30.0))
    assert of_a_pixel.at([[319.5, 300.5]]).sigma_m[0] == pytest.approx(0.4444, rel=0.02)
    assert of_a_pixel.at([[319.5, 300.5]], 3.0).sigma_m[0] == pytest.approx(3 * 0.4444, rel=0.02)
    # A degree of pitch at 10 m from 1.5 m: (10 ** 2 + 1.5 ** 2) / 1.5 * 0.01745 = 1.190 m
    of_pitch = model(settings=replace(ON_GROUND, pixel_sigma_px=0.0, pitch_sigma_rad=math.radians(1)))
    assert of_pitch.at([[319.5, 345.5]]).sigma_m[0] == pytest.approx(1.190, abs=1e-3)


@pytest.mark.parametrize("roll_deg", [0.0, 12.0, -30.0])
def test_above_the_horizon_beyond_the_range_and_behind_the_camera_there_is_nothing(roll_deg: float) -> None:
    rolled = model(roll_deg=roll_deg)
    sky = project(rolled.camera, rolled.pose, np.array([[50.0, 0.0, 1.6], [50.0, 3.0, 20.0]]))
    far = project(rolled.camera, rolled.pose, np.array([[20.5, 0.0, 0.0]]))
    near = project(rolled.camera, rolled.pose, np.array([[19.5, 0.0, 0.0]]))
    found = rolled.at(np.concatenate([sky, far, near]))
    np.testing.assert_array_equal(np.isnan(found.sigma_m), [True, True, True, False])
    np.testing.assert_array_equal(np.isnan(found.xyz[:, 0]), [True, True, True, False])
    # Looking straight up, no pixel meets the ground; straight down, every pixel does, those behind the camera too.
    assert np.isnan(model(pitch_deg=-90, roll_deg=roll_deg).at([[0, 0], [320, 511]]).sigma_m).all()
    below = model(pitch_deg=90, roll_deg=roll_deg).at([[319.5, 255.5], [319.5, 455.5]])
    np.testing.assert_allclose(below.xyz[0], [0, 0, 0], atol=1e-6)
    assert np.hypot(*below.xyz[1, :2]) == pytest.approx(0.5)  # 1.5 m * 200 / 600, on the side of the robot's back
    assert below.xyz[1, 0] < 0


@given(
    x=st.floats(2.0, 40.0),
    y=st.floats(-8.0, 8.0),
    pitch=st.floats(-5.0, 30.0),
    roll=st.floats(-40.0, 40.0),
    yaw=st.floats(-180.0, 180.0),
    height=st.floats(0.3, 4.0),
    bend=st.sampled_from([(), (-0.2, 0.05, 0.001, -0.001, 0.0)]),
)
def test_what_stands_on_the_ground_is_found_by_its_pixel(
    x: float, y: float, pitch: float, roll: float, yaw: float, height: float, bend: tuple[float, ...]
) -> None:
    camera, pose = pinhole(d=bend), look_down(height, pitch, roll, yaw)
    turn = math.radians(yaw)
    point = np.array([[x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn), 0.0]])
    optical = pose.to_optical(point)[0]
    if optical[2] < 0.5 or np.abs(optical[:2] / optical[2]).max() > 0.5:
        return  # outside the image
    found = GroundModel(camera, pose, FAR).at(project(camera, pose, point))
    # The lens's inverse is good to some 1e-4 px; the distance to what that makes of it there.
    np.testing.assert_allclose(found.xyz, point, atol=1e-2 + 1e-3 * x * x / height)


def test_rectified_images_are_read_by_the_projection_matrix() -> None:
    camera = replace(pinhole(d=(-0.3, 0.1, 0.0, 0.0, 0.0)), p=(500.0, 0, 300.5, 0, 0, 500.0, 250.5, 0, 0, 0, 1, 0))
    found = GroundModel(camera, look_down(), ON_GROUND, rectified=True).at([[300.5, 325.5]])
    np.testing.assert_allclose(found.xyz, [[10, 0, 0]], atol=1e-5)  # 1.5 * 500 / 75


def test_a_transform_and_a_mounting_say_the_same() -> None:
    # The optical frame of a camera that looks forward, as robot descriptions have it: x -0.5 y 0.5 z -0.5 w 0.5
    found = CameraPose.of_transform((0.2, 0.1, 1.2), (-0.5, 0.5, -0.5, 0.5))
    assert found.position_m == (0.2, 0.1, 1.2)
    np.testing.assert_allclose(found.rotation, CameraPose.mounted((0.2, 0.1, 1.2)).rotation, atol=1e-12)
    # A positive pitch looks down: what is straight ahead of the lens lies below.
    assert CameraPose.mounted((0, 0, 1.2), (0, 0.2, 0)).to_base(np.array([[0.0, 0, 1]]))[0, 2] < 1.2
    # A positive roll about the forward axis brings the right side down: what is right in the image lies low.
    assert CameraPose.mounted((0, 0, 0), (0.2, 0, 0)).to_base(np.array([[1.0, 0, 0]]))[0, 2] < 0


def test_the_ground_may_lie_below_the_base_frame() -> None:
    pose = replace(look_down(1.2), ground_z_m=-0.3)  # base_link 0.3 m above the ground
    found = GroundModel(pinhole(), pose).at([[319.5, 345.5]])
    np.testing.assert_allclose(found.xyz, [[10, 0, 0.2]], atol=1e-5)  # half a metre above the ground


def test_a_camera_that_is_not_above_the_ground_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the camera is -0.10 m above the ground: .*ground\.z_m"):
        GroundModel(pinhole(), look_down(-0.1))


@pytest.mark.parametrize("roll_deg", [90.0, -90.0, 180.0, 61.0])
def test_a_camera_on_its_side_or_upside_down_is_refused(roll_deg: float) -> None:
    """Lower edges are no feet then: the obstacle would be placed far away, or nowhere, and its place cleared."""
    with pytest.raises(ValueError, match=rf"the camera is rolled by -?{abs(roll_deg):.0f} degrees: .*images upright"):
        model(pitch_deg=5, roll_deg=roll_deg)
    model(pitch_deg=5, roll_deg=math.copysign(59, roll_deg))


def test_a_raw_image_is_seen_through_the_lens_and_not_through_the_rectifying_rotation() -> None:
    turn = tuple(np.reshape(look_down(1.0, 4, 3, 2).rotation, (3, 3)) @ np.reshape(look_down().rotation, (3, 3)).T)
    pixels = [[100.0, 300.0], [500.0, 400.0]]
    for bend in ((), (-0.2, 0.05, 0.001, -0.001, 0.0)):
        straight = pinhole(d=bend)
        turned = replace(straight, r=tuple(np.concatenate(turn).tolist()))
        rays = (GroundModel(camera, look_down()).rays(pixels) for camera in (straight, turned))
        np.testing.assert_allclose(*rays, atol=1e-6)


def test_a_lens_that_cannot_be_inverted_in_the_corners_has_a_view_all_the_same() -> None:
    ground = model(pitch_deg=5, focal_px=400.0, d=(-0.35, 0.1, 0.0, 0.0, 0.0))
    assert np.isnan(ground.rays([[0, 0], [639, 511]])).all()
    assert ground.nearest_ground_m == pytest.approx(1.7, abs=0.2)
    assert len(ground.clearing_ends(GroundPoints.none())) > 100


# -- boxes and masks ---------------------------------------------------------------------------------------------------


def test_a_box_becomes_a_line_of_points_across_its_foot() -> None:
    # Exclusive bottom 346: its edge lies at row 345.5, 10 m away. 60 px wide there: columns 290 to 349, 0.98 m.
    found = model(settings=replace(ON_GROUND, spacing_m=0.1)).of_boxes(np.array([[290, 200, 350, 346]], np.float32))
    np.testing.assert_allclose(found.xyz[:, 0], 10, atol=1e-4)
    assert found.xyz[:, 1].max() == pytest.approx((319.5 - 290) / 60, abs=1e-4)
    assert found.xyz[:, 1].min() == pytest.approx((319.5 - 349) / 60, abs=1e-4)
    assert np.abs(np.diff(found.xyz[:, 1])).max() < 0.1
    # 2 % of 146 px and 2.5 px: 3.84 px, of 0.111 m each at 10 m; and 0.3 degrees: 0.357 m
    assert found.sigma_m[0] == pytest.approx(math.hypot(3.84 * 0.1111, 0.357), abs=0.01)


def test_a_foot_below_the_image_is_placed_on_the_nearest_ground_and_said_to_be_unsure() -> None:
    found = model().of_boxes(np.array([[290, 100, 350, 512]], np.float32))
    nearest = 1.5 * 600 / (511.5 - 255.5)  # the lower edge of the last row
    np.testing.assert_allclose(found.xyz[:, 0], nearest, atol=1e-4)
    np.testing.assert_allclose(found.sigma_m, 0.5 * nearest, rtol=0.01)


def test_a_corner_above_a_tilted_horizon_leaves_the_middle_of_the_foot() -> None:
    rolled = model(roll_deg=20)
    foot = project(rolled.camera, rolled.pose, np.array([[15.0, 0.0, 0.0]]))[0]
    box = np.array([[foot[0] - 199.5, 100, foot[0] + 200.5, foot[1] + 0.5]], np.float32)
    assert np.isnan(rolled.at([[box[0, 0], foot[1]], [box[0, 2] - 1, foot[1]]]).sigma_m).any()
    found = rolled.of_boxes(box)
    assert len(found) > 0
    np.testing.assert_allclose(found.xyz, np.tile([15.0, 0.0, 0.0], (len(found), 1)), atol=0.01)


def test_a_box_of_no_numbers_gives_no_points() -> None:
    assert len(model().of_boxes(np.full((1, 4), np.nan, np.float32))) == 0


def test_no_boxes_give_no_points() -> None:
    assert len(model().of_boxes(np.zeros((0, 4), np.float32))) == 0
    assert len(model().of_pixels(np.zeros((512, 640), bool))) == 0


def test_each_column_of_a_mask_has_its_own_foot() -> None:
    members = np.zeros((512, 640), bool)
    members[200:346, 300:310] = True
    members[200:301, 310:320] = True
    members[400:403, 330] = True  # three pixels: noise
    found = model(settings=replace(ON_GROUND, max_range_m=25.0)).of_pixels(members)
    np.testing.assert_allclose(found.xyz[:10, 0], 10, atol=1e-4)
    np.testing.assert_allclose(found.xyz[10:, 0], 20, atol=1e-3)
    np.testing.assert_allclose(found.xyz[:10, 1], (319.5 - np.arange(300, 310)) / 60, atol=1e-4)
    assert len(found) == 20


def test_points_are_thinned_to_squares_and_to_a_bound_the_nearest_first() -> None:
    rng = np.random.default_rng(0)
    xyz = np.column_stack([rng.uniform(2, 18, 5000), rng.uniform(-3, 3, 5000), np.zeros(5000)]).astype(np.float32)
    points = GroundPoints(xyz, xyz[:, 0])
    thinned = model(settings=GroundSettings(spacing_m=0.5)).thinned(points)
    assert len(np.unique(np.floor(thinned.xyz[:, :2] / 0.5), axis=0)) == len(thinned) == 12 * 32
    bounded = model(settings=GroundSettings(spacing_m=0.5, max_points=50)).bounded(thinned)
    away = np.hypot(*bounded.xyz[:, :2].T)
    assert len(bounded) == 50
    assert (np.diff(away) >= 0).all()
    np.testing.assert_array_equal(bounded.xyz, thinned.xyz[:50])
    np.testing.assert_array_equal(bounded.sigma_m, bounded.xyz[:, 0])  # each its own
    # The nearest of each square, by the rule itself.
    nearest: dict[tuple[int, int], float] = {}
    for x, y, _ in xyz.astype(np.float64):
        square = math.floor(x / 0.5), math.floor(y / 0.5)
        nearest[square] = min(nearest.get(square, math.inf), math.hypot(x, y))
    np.testing.assert_allclose(np.hypot(*thinned.xyz[:, :2].T), sorted(nearest.values()), atol=1.1e-3)  # in millimetres


def segmented(mask: UInt8Image, confidence: int = 255) -> Segmentation:
    """Return a student's answer that is equally sure of every pixel."""
    return Segmentation(mask, np.full(mask.shape, confidence, np.uint8))


def test_pixels_of_the_groups_classes_count_where_the_student_is_sure() -> None:
    mask = np.zeros((512, 640), np.uint8)
    mask[200:346, 300:400] = PERSON
    mask[200:346, 500:600] = SEGMENTATION.id_of("car")
    sure = segmented(mask)
    sure.confidence[:, 350:] = 203  # 0.796
    people = ObstacleFinder([ClassGroup.parse("people=person")], DETECTION.classes, SEGMENTATION.classes)

    def sideways(limit: float) -> tuple[float, float]:
        found = people.find(model(settings=replace(ON_GROUND, mask_minimum_confidence=limit)), None, sure)["people"]
        np.testing.assert_allclose(found.xyz[:, 0], 10, atol=1e-4)
        return float(found.xyz[:, 1].min()), float(found.xyz[:, 1].max())

    columns = {0.0: (300, 399), 0.796: (300, 399), 0.8: (300, 349), 1.0: (300, 349)}
    for limit, (left, right) in columns.items():
        assert sideways(limit) == pytest.approx(((319.5 - right) / 60, (319.5 - left) / 60), abs=0.1)  # by thinning
    with pytest.raises(ValueError, match=r"mask_minimum_confidence must be in 0\.\.1, got 80"):
        GroundSettings(mask_minimum_confidence=80)


def test_groups_are_read_and_found_in_the_students_classes() -> None:
    groups = [ClassGroup.parse("people=person"), ClassGroup.parse("vehicles = car, bicycle,bike")]
    finder = ObstacleFinder(groups, DETECTION.classes, SEGMENTATION.classes)
    boxes = np.array([[290, 200, 350, 346], [100, 250, 200, 301]], np.float32)
    found = finder.find(
        model(),
        Detections(boxes, np.array([0.9, 0.8], np.float32), np.array([0, 2])),
        segmented(np.zeros((512, 640), np.uint8)),
    )
    assert list(found) == ["people", "vehicles"]
    np.testing.assert_allclose(found["people"].xyz[:, 0], 10, atol=1e-4)
    np.testing.assert_allclose(found["vehicles"].xyz[:, 0], 20, atol=1e-3)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["people"], "'people' is no class group: write a topic name, an equals sign and classes"),
        (["two words=person"], "is no class group"),
        (["people=person,"], "is no class group"),
        (["people=human"], "'people' names human, which the student does not know: it knows bicycle, bike"),
        (["a=person", "a=car"], "two class groups have the same name"),
    ],
)
def test_groups_that_cannot_be_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObstacleFinder([ClassGroup.parse(text) for text in texts], DETECTION.classes, SEGMENTATION.classes)


def test_a_group_that_the_evidence_never_shows_is_refused() -> None:
    things = [ClassGroup.parse("things=guardrail,color_cone")]
    with pytest.raises(ValueError, match=r"'things' would always be empty: .* ground\.evidence 'detections'"):
        ObstacleFinder(things, DETECTION.classes, SEGMENTATION.classes, "detections")
    ObstacleFinder(things, DETECTION.classes, SEGMENTATION.classes, "mask")
    vehicles = [ClassGroup.parse("vehicles=car,bicycle,bike")]
    ObstacleFinder(vehicles, DETECTION.classes, SEGMENTATION.classes, "detections")  # the bike of the masks may stay


def test_a_result_without_a_task_does_not_look_for_what_that_alone_shows() -> None:
    boxes = Detections(*(np.zeros((0, *n), np.float32) for n in ((4,), (), ())))
    mask = segmented(np.zeros((4, 4), np.uint8))

    def looks(group: str, evidence: str = "both") -> tuple[bool, bool, bool]:
        finder = ObstacleFinder([ClassGroup.parse(group)], DETECTION.classes, SEGMENTATION.classes, evidence)
        return tuple(finder.looks_for_all(*parts) for parts in ((boxes, mask), (boxes, None), (None, mask)))

    assert looks("a=person") == (True, True, True)
    assert looks("a=guardrail") == (True, False, True)
    assert looks("a=bicycle,person") == (True, True, False)
    assert looks("a=bike,person", "detections") == (True, True, False)
    assert looks("a=person", "complementary") == (True, True, False)
    assert looks("a=bike", "complementary") == (True, False, True)


def test_complementary_evidence_takes_the_mask_for_what_is_not_detected_alone() -> None:
    mask = np.zeros((512, 640), np.uint8)
    mask[200:346, 300:310] = PERSON
    mask[200:346, 400:410] = SEGMENTATION.id_of("color_cone")
    boxes = Detections(np.array([[200, 100, 210, 346]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    group = ClassGroup.parse("a=person,color_cone")

    def columns(evidence: str) -> set[int]:
        finder = ObstacleFinder([group], DETECTION.classes, SEGMENTATION.classes, evidence)
        found = finder.find(model(), boxes, segmented(mask))["a"].xyz
        return set(np.floor(319.5 - 60 * found[:, 1]).astype(int) // 100)

    assert columns("both") == {2, 3, 4}
    assert columns("complementary") == {2, 4}
    assert columns("detections") == {2}
    assert columns("mask") == {3, 4}


# -- by depth ----------------------------------------------------------------------------------------------------------


def test_depth_places_what_does_not_stand_on_the_plane() -> None:
    """A person on a kerb, or a camera that pitches: the ground would say 10 m, the depth says 7."""
    depth = np.full((256, 320), np.nan, np.float32)  # half the size of the image
    depth[100:173, 145:175] = 7.0
    found = model().of_boxes_by_depth(np.array([[290, 200, 350, 346]], np.float32), depth)
    np.testing.assert_allclose(found.xyz[:, 0], 7, atol=1e-5)
    assert found.xyz[:, 1].max() == pytest.approx((319.5 - 290) / 600 * 7, abs=1e-5)
    np.testing.assert_allclose(found.sigma_m, 0.02 * 7, rtol=1e-5)


def test_a_box_without_depth_is_placed_by_the_ground() -> None:
    boxes = np.array([[290, 200, 350, 346]], np.float32)
    found = model().of_boxes_by_depth(boxes, np.zeros((256, 320), np.float32))
    np.testing.assert_array_equal(found.xyz, model().of_boxes(boxes).xyz)


def test_pixels_of_a_mask_take_their_own_depth_and_height() -> None:
    members = np.zeros((512, 640), bool)
    members[300:304, 318:322] = True  # rows 150 and 151, columns 159 and 160 of the depth image
    depth = np.full((256, 320), 5.0, np.float32)
    depth[150, 159] = np.nan
    found = model().of_pixels_by_depth(members, depth)
    np.testing.assert_allclose(found.xyz[:, 0], 5, atol=1e-5)
    # Depth pixel (159, 151) has its centre at (318.5, 302.5) of the image: 1 column left, 47 rows down, of 600 px.
    np.testing.assert_allclose(found.xyz[:, 1], [-5 / 600, 5 / 600, -5 / 600], atol=1e-5)
    np.testing.assert_allclose(found.xyz[:, 2], 1.5 - 5 * np.array([45, 47, 47]) / 600, atol=1e-5)


def test_depth_beyond_the_range_places_nothing() -> None:
    far = np.full((512, 640), 25.0, np.float32)
    assert len(model().of_pixels_by_depth(np.ones((512, 640), bool), far)) == 0
    assert len(model().of_boxes_by_depth(np.array([[290, 200, 350, 346]], np.float32), far)) == 0


@pytest.mark.parametrize("size", [(1, 1), (641, 513), (3, 1)])
def test_a_mask_and_a_depth_image_of_any_size(size: tuple[int, int]) -> None:
    ground = GroundModel(pinhole(size=size), look_down(1.5, 20), replace(ON_GROUND, mask_minimum_px=1))
    members = np.ones(size[::-1], bool)
    assert len(ground.of_pixels(members)) == size[0]
    for shape in ((1, 1), (1027, 1283)):
        assert len(ground.of_pixels_by_depth(members, np.full(shape, 2.0, np.float32))) == shape[0] * shape[1]


# -- clearing and scans ------------------------------------------------------------------------------------------------


def test_clearing_goes_through_the_view_and_ends_before_the_nearest_obstacle() -> None:
    ground = model(pitch_deg=10)
    free = ground.clearing_ends(GroundPoints.none()).xyz
    pixels = project(ground.camera, ground.pose, free)
    assert (pixels > -0.51).all()
    assert (pixels < (639.51, 511.51)).all()
    away = np.hypot(*free[:, :2].T)
    middle = np.abs(np.arctan2(free[:, 1], free[:, 0])) < 0.3
    np.testing.assert_allclose(away[middle], 20, rtol=0.11)  # the last of the distances that are looked at
    # Neighbours are no further apart than a square.
    assert np.hypot(*np.diff(free[middle][:, :2], axis=0).T).max() < 0.11

    person = GroundPoints(np.array([[8.0, y, 0.5] for y in (-0.2, -0.1, 0, 0.1, 0.2)], np.float32), np.full(5, 0.3))
    blocked = ground.clearing_ends(person).xyz
    bearing = np.arctan2(blocked[:, 1], blocked[:, 0])
    behind = np.abs(bearing) < math.atan2(0.25, 8)
    assert behind.sum() > 5
    np.testing.assert_allclose(np.hypot(*blocked[behind, :2].T), 8 - 0.3 - 0.1, atol=0.05)
    np.testing.assert_array_equal(blocked[np.abs(bearing) > 0.1], free[np.abs(bearing) > 0.1])


def test_clearing_ends_at_the_horizon_margin() -> None:
    ground = model(settings=GroundSettings(max_range_m=200.0, horizon_margin_rad=math.radians(2)))
    ends = ground.clearing_ends(GroundPoints.none()).xyz
    assert 0.85 < np.hypot(*ends[:, :2].T).max() / (1.5 / math.tan(math.radians(2))) <= 1


def test_no_point_falls_between_two_bearings() -> None:
    """Where rays are further apart than a square is wide: 720 of them over a degree more than the view, at 150 m."""
    ground = model(settings=GroundSettings(max_range_m=200.0, horizon_margin_rad=0.0))
    for bearing in np.linspace(-0.2, 0.2, 101):
        point = np.array([[150 * math.cos(bearing), 150 * math.sin(bearing), 0.5]], np.float32)
        assert np.nanmin(ground.scan(GroundPoints(point, np.zeros(1, np.float32))).ranges) == pytest.approx(150)


def test_what_the_bound_of_points_leaves_out_is_not_cleared() -> None:
    ground = model(pitch_deg=10, settings=GroundSettings(max_points=5))
    boxes = np.array([[400, 100, 640, 500], [100, 150, 140, 240]], np.float32)  # the second stands further away
    finder = ObstacleFinder([ClassGroup.parse("people=person")], DETECTION.classes, SEGMENTATION.classes)
    found = finder.find(ground, Detections(boxes, np.ones(2, np.float32), np.zeros(2, np.int64)), None)["people"]
    far = ground.of_boxes(boxes[1:]).xyz[3]
    assert np.hypot(*ground.bounded(found).xyz[:, :2].T).max() < np.hypot(*far[:2])
    ends = ground.clearing_ends(found).xyz
    beside = np.abs(np.arctan2(ends[:, 1], ends[:, 0]) - math.atan2(far[1], far[0])) < 0.003
    assert beside.any()
    assert (np.hypot(*ends[beside, :2].T) < np.hypot(*far[:2])).all()


def test_there_is_no_clearing_where_the_camera_sees_no_ground() -> None:
    assert len(model(pitch_deg=-60).clearing_ends(GroundPoints.none())) == 0
    assert math.isnan(model(pitch_deg=-60).nearest_ground_m)


def test_the_nearest_ground_in_view_is_that_of_the_last_row() -> None:
    assert model().nearest_ground_m == pytest.approx(1.5 * 600 / 256, rel=0.1)


def test_a_scan_has_the_nearest_range_and_says_nothing_where_there_is_no_obstacle() -> None:
    ground = model(pitch_deg=10)
    points = np.array([[8.0, 0.0, 0.5], [12.0, 0.0, 0.5], [6.0, -2.0, 0.5]], np.float32)
    scan = ground.scan(GroundPoints(points, np.zeros(3, np.float32)))
    bearings = scan.angle_min + scan.angle_increment * np.arange(len(scan.ranges))
    ahead = np.abs(bearings) < 0.01
    np.testing.assert_allclose(scan.ranges[ahead], 8)
    right = np.abs(bearings - math.atan2(-2, 6)) < 0.01
    np.testing.assert_allclose(scan.ranges[right], math.hypot(6, 2), rtol=1e-6)
    assert np.isnan(scan.ranges[bearings > 0.1]).all()
    assert not np.isinf(scan.ranges).any()


def test_a_camera_that_looks_back_has_no_seam_behind_the_vehicle() -> None:
    ground = GroundModel(pinhole(), look_down(1.5, 10, yaw_deg=180), ON_GROUND)
    points = np.array([[-8.0, y, 0.5] for y in (-0.1, 0.0, 0.1)], np.float32)
    obstacle = GroundPoints(points, np.zeros(3, np.float32))
    ends = ground.clearing_ends(obstacle).xyz
    off = np.pi - np.abs(np.arctan2(ends[:, 1], ends[:, 0]))  # from straight back
    assert off.max() < 0.55  # half of the field of view, 0.49, and a little more close by
    away = np.hypot(*ends[:, :2].T)
    np.testing.assert_allclose(away[off < 0.01], 7.9, atol=1e-3)
    assert (away[(off > 0.05) & (off < 0.3)] > 17).all()
    scan = ground.scan(obstacle)
    bearings = scan.angle_min + scan.angle_increment * np.arange(len(scan.ranges))
    np.testing.assert_allclose(scan.ranges[np.pi - np.abs(bearings) < 0.005], 8, atol=0.01)
    assert np.isnan(scan.ranges[np.abs(bearings) < 3.0]).all()


def test_points_in_the_optical_frame() -> None:
    pose = look_down(1.5)
    points = GroundPoints(np.array([[10.0, 2.0, 0.5]], np.float32), np.ones(1, np.float32))
    np.testing.assert_allclose(points.in_optical_frame(pose).xyz, [[-2, 1, 10]], atol=1e-6)


# -- against the scene world -------------------------------------------------------------------------------------------


def test_true_boxes_are_placed_within_a_tenth_of_a_metre() -> None:
    """Median within 20 m: ahead to the sole that stands nearer, sideways to the person's place."""
    errors, from_the_body = [], []
    for seed in range(16):
        scene = sample_scene(seed, SceneSettings(size=(640, 512)))
        view = render_rgb(scene, 0.0)
        ground = GroundModel(*of_scene(view.camera), replace(ON_GROUND, max_range_m=25.0))
        objects = view.objects
        people = {actor.actor_id: actor for actor in scene.actors if isinstance(actor, Person)}
        for index in range(len(objects)):
            actor = people.get(int(objects.actor_id[index]))
            on_feet = actor is not None and not actor.rider and not actor.behind_glass
            if not on_feet or objects.truncation[index] > 0 or objects.distance_m[index] > 20:
                continue
            left, _, right, bottom = objects.boxes[index]
            found = ground.at([[0.5 * (left + right) - 0.5, bottom - 0.5]]).xyz[0, :2]
            place = objects.position_m[index]
            errors.append(np.hypot(*(found - (contact_m(scene, actor), place[1]))))
            from_the_body.append(np.hypot(*(found - place)))
    assert len(errors) > 20
    assert np.median(errors) < 0.1
    # The foot that is put forward is not where the body is: half a step, and half the length of a shoe.
    assert np.median(from_the_body) < 0.2


def test_it_costs_a_millisecond_or_two() -> None:
    ground = model(pitch_deg=5)
    rng = np.random.default_rng(0)
    mask = segmented(np.repeat(rng.choice(np.array([0, 0, 2], np.uint8), (512, 40)), 16, axis=1))
    boxes = np.array([[x, 100, x + 30, 300 + x / 10] for x in range(0, 600, 30)], np.float32)
    finder = ObstacleFinder([ClassGroup.parse("people=person")], DETECTION.classes, SEGMENTATION.classes)
    found = Detections(boxes, np.ones(20, np.float32), np.zeros(20, np.int64))
    ground.clearing_ends(finder.find(ground, found, mask)["people"])
    times = []
    for _ in range(10):
        start = time.perf_counter()
        ground.clearing_ends(finder.find(ground, found, mask)["people"])
        times.append(1e3 * (time.perf_counter() - start))
    print(f"a group by box and mask, and its clearing lines: {np.median(times):.2f} ms")
    assert min(times) < 10


def test_by_depth_it_costs_by_the_pixel() -> None:
    ground, people = model(pitch_deg=5), np.ones((512, 640), bool)
    depth = np.full((480, 640), 4.0, np.float32)
    start = time.perf_counter()
    found = ground.thinned(ground.of_pixels_by_depth(people, depth))
    took_ms = 1e3 * (time.perf_counter() - start)
    print(f"every pixel of a 640x480 depth image an obstacle: {took_ms:.0f} ms")
    assert 100 < len(found) < depth.size / 10
    assert took_ms < 1000
