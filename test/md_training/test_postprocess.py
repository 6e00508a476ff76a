"""From raw heads to results: suppression without data-dependent steps, and masks that need no whole softmax."""

from itertools import pairwise

import pytest
import torch
from torchvision.ops import batched_nms, box_iou

from md_training import postprocess
from md_training.models.pspnet import SegmentationLogits
from md_training.models.retinanet import DetectionLogits
from md_training.postprocess import (
    NMS_IOU,
    SUPPRESSION_ROUNDS,
    DetectionLimits,
    detect,
    detect_batch,
    detect_padded,
    segment,
    unsuppressed,
)
from md_training.preprocess import logits_to_camera, make_letterbox

# --- suppression


def crowd(seed: int, count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes around a few places, far more of them than objects, and their labels; best first."""
    random = torch.Generator().manual_seed(seed)
    places = torch.rand(12, 2, generator=random) * 400
    centres = places[torch.randint(0, 12, (count,), generator=random)] + torch.randn(count, 2, generator=random) * 12
    sizes = torch.tensor([25.0, 60.0]) * torch.exp(torch.randn(count, 2, generator=random) * 0.25)
    return torch.cat([centres - sizes / 2, centres + sizes / 2], dim=1), torch.randint(0, 3, (count,), generator=random)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rounds", [6, SUPPRESSION_ROUNDS])
def test_suppression_in_rounds_keeps_what_greedy_suppression_keeps(
    seed: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postprocess, "SUPPRESSION_ROUNDS", rounds)
    boxes, labels = crowd(seed)
    kept = batched_nms(boxes, torch.arange(len(boxes), 0, -1).float(), labels, NMS_IOU)
    assert unsuppressed(boxes, labels).nonzero()[:, 0].tolist() == kept.sort().values.tolist()
    assert 20 < len(kept) < 300


def row_of_boxes(count: int) -> torch.Tensor:
    """Return boxes each of which overlaps only its neighbours by more than NMS_IOU."""
    left = torch.arange(count) * 6.0  # 20 px wide: 14 / 26 = 0.54 with the next, 8 / 32 with the one after it
    return torch.stack([left, torch.zeros(count), left + 20, torch.full((count,), 40.0)], dim=1)


def test_a_long_chain_may_leave_a_box_too_many_but_none_too_few() -> None:
    boxes = row_of_boxes(3 * SUPPRESSION_ROUNDS)
    overlaps = box_iou(boxes, boxes)
    assert all(overlaps[i, j] > NMS_IOU for i, j in pairwise(range(len(boxes))))
    assert not bool((overlaps.triu(diagonal=2) > NMS_IOU).any())
    kept = unsuppressed(boxes, torch.zeros(len(boxes), dtype=torch.int64))
    greedy = torch.arange(len(boxes)) % 2 == 0
    assert torch.equal(kept[:SUPPRESSION_ROUNDS], greedy[:SUPPRESSION_ROUNDS])
    assert bool(kept[greedy].all())
    assert not torch.equal(kept, greedy)


def test_padded_detection_is_detection_with_rows_of_no_object() -> None:
    random = torch.Generator().manual_seed(2)
    anchors, _ = crowd(3, 500)
    logits = DetectionLogits(
        torch.randn(1, 500, 3, generator=random) * 2 - 2, torch.randn(1, 500, 4, generator=random) * 0.3
    )
    box = make_letterbox(300, 500, (640, 512), anchors)
    for limits in (DetectionLimits(score_threshold=0.75), DetectionLimits(score_threshold=0.0, maximum=30)):
        expected = detect(logits, anchors, box, limits)
        found = detect_padded(logits, anchors, box, limits)
        count = len(expected[1])
        assert [tensor.shape[0] for tensor in found] == [limits.maximum] * 3
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other[:count], one)
        assert 10 < count <= limits.maximum
        assert (count == limits.maximum) == (limits.maximum == 30)
        assert bool((found[1][count:] == -1).all())
        assert not found[0][count:].any()
        assert not found[2][count:].any()


def test_a_batch_is_detected_in_as_its_images_one_by_one() -> None:
    random = torch.Generator().manual_seed(4)
    anchors, _ = crowd(3, 500)
    classes = torch.randn(4, 500, 3, generator=random) * 2 - 2
    classes[1] = -20  # nothing to be seen
    classes[3] = classes[0]  # the same places twice: images do not suppress each other
    deltas = torch.randn(4, 500, 4, generator=random) * 0.3
    deltas[3] = deltas[0]
    box = make_letterbox(299, 501, (640, 512), anchors)
    for limits in (DetectionLimits(score_threshold=0.5), DetectionLimits(score_threshold=0.1, maximum=7)):
        boxes, scores, labels, image = detect_batch(DetectionLogits(classes, deltas), anchors, box, limits)
        counts = []
        for index in range(4):
            one = DetectionLogits(classes[index : index + 1], deltas[index : index + 1])
            expected = detect(one, anchors, box, limits)
            rows = image == index
            for found, alone in zip((boxes, scores, labels), expected, strict=True):
                assert torch.equal(found[rows], alone)
            counts.append(int(rows.sum()))
        assert image.tolist() == sorted(image.tolist())
        assert counts[1] == 0
        assert counts[0] == counts[3] > 5
        assert counts[:3:2] == [7, 7] or max(counts) > 7  # the limit is that of an image


# --- masks


@pytest.mark.parametrize("tiles", [1, 7])
@pytest.mark.parametrize("spread", [3.0, 15.0])
def test_mask_and_confidence_are_those_of_a_softmax_at_full_size(spread: float, tiles: int) -> None:
    low = torch.randn(1, 9, 16, 20, generator=torch.Generator().manual_seed(1)) * spread + 1000
    box = make_letterbox(90, 200, (160, 128), low)
    mask, confidence = segment(SegmentationLogits(low, None), 90, 200, box, (160, 128), tiles)
    full = logits_to_camera(low.double(), 90, 200, box, (160, 128)).softmax(dim=1)
    best, winner = full.max(dim=1)
    assert float((mask != winner).float().mean()) < 1e-4
    assert float((confidence - 255 * best).abs().max()) < 0.6
    assert len(winner.unique()) == 9


def test_no_logits_however_far_apart_make_a_mask_without_a_winner() -> None:
    low = torch.zeros(1, 9, 16, 20)
    low[:, 4, :, :10], low[:, 7, :, 10:] = 1e4, 1e4
    box = make_letterbox(128, 160, (160, 128), low)
    mask, confidence = segment(SegmentationLogits(low, None), 128, 160, box, (160, 128))
    assert bool((mask[..., :80] == 4).all())
    assert bool((mask[..., 80:] == 7).all())
    assert bool((confidence[..., :75] == 255).all())
