"""From raw heads to results in camera pixels; evaluation and the exported graph both end in these functions."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from md_training.models.pspnet import SegmentationLogits
from md_training.models.retinanet import DetectionLogits, decode_boxes
from md_training.preprocess import Letterbox, boxes_to_camera, camera_rows

NMS_IOU = 0.5
SUPPRESSION_ROUNDS = 16
"""Even, see unsuppressed. Crowds of 400 boxes around a dozen places are settled in 6 (test_postprocess.py)."""
NO_OBJECT = -1.0
"""Score of the rows of a padded result that stand for no object."""


@dataclass(frozen=True)
class DetectionLimits:
    """score_threshold: detections below are left out. candidates: best (anchor, class) pairs that enter the
    suppression. maximum: most detections of one image."""

    score_threshold: float = 0.05
    candidates: int = 400
    maximum: int = 100


def detect(
    logits: DetectionLogits, anchors: Tensor, box: Letterbox, limits: DetectionLimits
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the objects of a batch of one image, highest score first.

    Returns boxes float32 (N, 4), xyxy, camera px, clipped to the camera image; scores float32 (N,); labels int64 (N,).
    """
    return detect_batch(logits, anchors, box, limits)[:3]


def detect_batch(
    logits: DetectionLogits, anchors: Tensor, box: Letterbox, limits: DetectionLimits
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the objects of a batch, image after image, each as `detect` returns them alone.

    Returns boxes, scores and labels as `detect`, and the image of each row, int64 (N,), 0 to B - 1.
    """
    boxes, scores, labels = candidates(logits, anchors, box, limits)
    # Classes do not suppress each other: each is moved to a plane of its own. (batched_nms does not export.)
    plane = (box.width + box.height) * labels.to(boxes.dtype)
    image, row = suppress(boxes + plane[..., None], scores, limits.maximum).unbind(dim=1)
    row = row + image * scores.shape[1]
    kept = scores.flatten()[row]
    above = kept >= limits.score_threshold
    row = row[above]
    return boxes.flatten(0, 1)[row], kept[above], labels.flatten()[row], image[above]


@torch.library.custom_op("md_training::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, maximum: int) -> Tensor:
    """Return int64 (N, 2), image and row of the boxes that greedy suppression keeps, at most `maximum` of an image.

    boxes: float32 (B, K, 4), xyxy. scores: float32 (B, K). The images come in their order, their rows by score.
    ONNX has an operator for a batch and torchvision none, hence an operator of our own: export.TRANSLATIONS.
    """
    kept = [nms(*one, NMS_IOU)[:maximum] for one in zip(boxes, scores, strict=True)]
    images = [torch.full_like(rows, index) for index, rows in enumerate(kept)]
    return torch.stack([torch.cat(images), torch.cat(kept)], dim=1)


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, maximum: int) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(), 2), dtype=torch.int64)


def detect_padded(
    logits: DetectionLogits, anchors: Tensor, box: Letterbox, limits: DetectionLimits
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `detect` does in shapes that do not depend on the image, as CUDA graphs need them.

    Returns boxes (K, 4), scores (K,) and labels (K,) with K the limits' maximum (or all candidates, where they are
    fewer); beyond the objects that were found boxes and labels are 0 and scores NO_OBJECT.
    """
    boxes, scores, labels = (values[0] for values in candidates(logits, anchors, box, limits))
    keep = unsuppressed(boxes, labels) & (scores >= limits.score_threshold)
    scores, best = torch.where(keep, scores, NO_OBJECT).topk(min(limits.maximum, len(scores)))
    found = scores >= 0
    return boxes[best] * found[:, None], scores, labels[best] * found


def unsuppressed(boxes: Tensor, labels: Tensor) -> Tensor:
    """Return bool (N,): what greedy suppression within each class keeps, without steps that depend on the data.

    boxes: float32 (N, 4), xyxy, best first. labels: int64 (N,).
    A box stays unless a better one that stays overlaps it. Taking all to stay at first and applying this to all at
    once, again and again, settles a box as soon as those that decide on it are settled: of a chain in which each box
    would suppress only the next, one in a round. After an even number of rounds, whatever is not settled yet stays: a
    chain longer than SUPPRESSION_ROUNDS may leave an object with two boxes, never without one.
    """
    suppresses = (box_iou(boxes, boxes) > NMS_IOU) & (labels[:, None] == labels)
    suppressed_by = suppresses.to(torch.float32).triu(diagonal=1)  # [i, j]: i is better than j and overlaps it
    stays = torch.ones_like(suppressed_by[:1])
    for _ in range(SUPPRESSION_ROUNDS):
        stays = (1 - stays @ suppressed_by).clamp(min=0)
    return stays[0] > 0.5


def candidates(
    logits: DetectionLogits, anchors: Tensor, box: Letterbox, limits: DetectionLimits
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best (anchor, class) pairs of each image of a batch before the suppression, highest score first.

    Returns boxes float32 (B, K, 4), scores float32 (B, K) and labels int64 (B, K), else as `detect`.
    """
    class_logits, deltas = logits.classes.float(), logits.deltas.float()  # B, A, classes and B, A, 4
    places, classes = class_logits.shape[1:]
    count = min(limits.candidates, places * classes)
    scores, order = class_logits.flatten(1).topk(count)
    anchor, labels = order // classes, order % classes
    moved = deltas.gather(1, anchor[..., None].expand(-1, -1, 4))
    boxes = decode_boxes(moved.flatten(0, 1), anchors[anchor.flatten()])
    return boxes_to_camera(boxes, box).unflatten(0, (-1, count)), scores.sigmoid(), labels


def segment(
    logits: SegmentationLogits, height: int, width: int, box: Letterbox, input_size: tuple[int, int], tiles: int = 1
) -> tuple[Tensor, Tensor]:
    """Return the class of every camera pixel, uint8 (B, height, width), and its probability, uint8 0..255, same shape.

    The logits are upsampled and the best of them taken, not the classes: a class that is second in two cells can be
    first between them. tiles: the image is worked through in so many parts, so that a part stays in a processor's
    caches: all logits of 1920x1080 px are 75 MB.
    """
    low = logits.main.float()
    # The probability is the same whatever is taken off all logits of a cell. With the largest of each cell taken off,
    # exp cannot overflow, and cannot lose a winner either while the logits of a cell are within 100 of each other.
    low = low - low.amax(dim=1, keepdim=True)
    masks, confidences = [], []
    for full in camera_rows(low, height, width, box, input_size, tiles):  # B, rows, width, K
        best = full.amax(dim=3).exp()
        masks.append(full.argmax(dim=3).to(torch.uint8))
        confidence = 255 * best / full.exp().sum(dim=3).clamp(min=1e-37)
        confidences.append(torch.round(confidence).to(torch.uint8))
    # Not [:height]: the exporter would not see that what it cuts off leaves just the camera's height.
    return torch.cat(masks, dim=1).narrow(1, 0, height), torch.cat(confidences, dim=1).narrow(1, 0, height)
