"""From raw heads to results in camera pixels; evaluation and the exported graph both end in these functions."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

from md_training.models.pspnet import SegmentationLogits
from md_training.models.retinanet import DetectionLogits, decode_boxes
from md_training.preprocess import Letterbox, boxes_to_camera, logits_to_camera

NMS_IOU = 0.5


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
    class_logits, deltas = logits.classes[0].float(), logits.deltas[0].float()  # A, K and A, 4
    classes = class_logits.shape[1]
    scores, order = class_logits.reshape(-1).topk(min(limits.candidates, class_logits.numel()))
    scores = scores.sigmoid()
    anchor, labels = order // classes, order % classes
    boxes = boxes_to_camera(decode_boxes(deltas[anchor], anchors[anchor]), box)
    # Classes do not suppress each other: each is moved to a plane of its own. (batched_nms does not export.)
    plane = (box.width + box.height) * labels.to(boxes.dtype)
    keep = nms(boxes + plane[:, None], scores, NMS_IOU)[: limits.maximum]
    keep = keep[scores[keep] >= limits.score_threshold]
    return boxes[keep], scores[keep], labels[keep]


def segment(
    logits: SegmentationLogits, height: int, width: int, box: Letterbox, input_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the class of every camera pixel, uint8 (B, height, width), and its probability, uint8 0..255, same shape.

    The probability of the winning class is 1 / sum(exp(logit - max)): no softmax over all classes at full size.
    """
    full = logits_to_camera(logits.main.float(), height, width, box, input_size)  # B, K, height, width
    best, mask = full.max(dim=1)
    confidence = 255 / (full - best[:, None]).exp().sum(dim=1)
    return mask.to(torch.uint8), torch.round(confidence).to(torch.uint8)
