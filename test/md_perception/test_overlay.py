from dataclasses import replace

import numpy as np
import pytest

from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.outputs.overlay import colours_of, draw
from md_perception.results import Detections, Mode, Perception, Segmentation, StageTimes, StudentOutput

WIDTH, HEIGHT = 640, 480
GREY = 60


def perception(boxes: list, labels: list[int], mask: np.ndarray | None = None, **changes) -> Perception:
    scores = np.linspace(0.9, 0.5, len(boxes)).astype(np.float32)
    return replace(
        Perception(
            stamp_ns=0,
            frame_id="rgb",
            mode=Mode.FUSED,
            size=(WIDTH, HEIGHT),
            rgb=np.full((HEIGHT, WIDTH, 3), GREY, np.uint8),
            output=StudentOutput(
                Detections(np.array(boxes, np.float32).reshape(-1, 4), scores, np.array(labels, np.int64)),
                None if mask is None else Segmentation(mask, mask),
            ),
            times=StageTimes(inference_ms=40),
        ),
        **changes,
    )


def drawn(seen: Perception, **arguments) -> np.ndarray:
    return draw(seen, DETECTION.classes, SEGMENTATION.classes, **arguments)


def test_boxes_have_the_colour_of_their_class_on_their_edge_pixels() -> None:
    seen = perception([[100, 200, 180, 300], [400, 200, 480, 300]], [0, 2])
    canvas = drawn(seen)
    for (left, right), colour in (((100, 180), DETECTION.palette[0]), ((400, 480), DETECTION.palette[2])):
        # Right and bottom are exclusive: the last columns and rows inside are 179 and 299.
        np.testing.assert_array_equal(canvas[250, left], colour)
        np.testing.assert_array_equal(canvas[250, right - 1], colour)
        np.testing.assert_array_equal(canvas[299, left + 40], colour)
        np.testing.assert_array_equal(canvas[250, left + 40], [GREY] * 3)
    assert (canvas[180:198, 102:170] == DETECTION.palette[0]).all(axis=-1).any()  # the plate with the name


def test_the_image_itself_is_not_drawn_on() -> None:
    seen = perception([[100, 200, 180, 300]], [0], np.full((HEIGHT, WIDTH), 2, np.uint8))
    drawn(seen, thermal=np.zeros((12, 16), np.uint8))
    np.testing.assert_array_equal(seen.rgb, np.full((HEIGHT, WIDTH, 3), GREY))


def test_the_mask_tints_its_pixels_and_no_others() -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[100:200, 100:200] = SEGMENTATION.id_of("bike")
    canvas = drawn(perception([], [], mask))
    np.testing.assert_array_equal(canvas[50:400, 201:500], np.full((350, 299, 3), GREY))
    red, green, blue = canvas[150, 150].astype(int)
    assert red < GREY < green < blue  # the hue of (0, 128, 192)
    assert (canvas[100:200, 100:200] == canvas[150, 150]).all()


def test_every_class_of_the_mask_has_a_tint_of_its_own() -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[200, 100 : 100 + len(SEGMENTATION)] = np.arange(len(SEGMENTATION))
    canvas = drawn(perception([], [], mask))
    colours = {tuple(pixel) for pixel in canvas[200, 100 : 100 + len(SEGMENTATION)].tolist()}
    assert len(colours) == len(SEGMENTATION)
    assert (GREY, GREY, GREY) in colours  # id 0 stays clear


@pytest.mark.parametrize(("mode", "channel"), [(Mode.FUSED, 1), (Mode.STALE, 0)])
def test_the_banner_in_the_lower_left_tells_the_mode(mode: Mode, channel: int) -> None:
    corner = drawn(perception([], [], mode=mode))[HEIGHT - 2, 2]
    assert corner.argmax() == channel
    assert corner[channel] > GREY


def test_thermal_is_an_inset_with_its_own_pixels() -> None:
    thermal = np.zeros((120, 160), np.uint8)
    thermal[:, 80:] = 250
    canvas = drawn(perception([], []), thermal=thermal)
    inset_width = round(0.28 * WIDTH)
    assert (canvas[60, WIDTH - 20] == 250).all()
    assert (canvas[60, WIDTH - inset_width + 20] == 0).all()
    assert (canvas[60, WIDTH - inset_width - 10] == GREY).all()
    assert (canvas[round(inset_width * 120 / 160) + 5, WIDTH - 20] == GREY).all()


def test_plates_stay_inside_the_image_wherever_the_box_is() -> None:
    boxes = [[0, 0, 20, 20], [WIDTH - 5, 0, WIDTH, 9], [0, HEIGHT - 4, 3, HEIGHT]]
    canvas = drawn(perception(boxes, [0, 0, 0]))
    red = (canvas == DETECTION.palette[0]).all(axis=-1)
    assert red[5:15, 20:60].any()  # to the right of the first box, below the upper edge
    assert red[5:15, WIDTH - 60 : WIDTH - 20].any()


def test_tiny_and_padded_images_are_drawn_too() -> None:
    rgb = np.zeros((20, 40, 3), np.uint8)[:, :30]
    canvas = drawn(perception([[0, 0, 30, 20]], [1], rgb=rgb, size=(30, 20)), thermal=np.zeros((40, 10), np.uint8))
    assert canvas.shape == (20, 30, 3)
    assert canvas.any()


def test_colours_go_by_name_not_by_order() -> None:
    assert colours_of(("car", "person", "ufo"), DETECTION) == [
        DETECTION.palette[2],
        DETECTION.palette[0],
        (200, 200, 200),
    ]
