"""What a training looks at before it goes on for hours: its first batch and its first loss."""

import logging
import math
from collections.abc import Mapping

import torch
from torchvision.ops import box_iou

from md_perception.labels import SEGMENTATION
from md_training.assignment import IGNORE_IOU
from md_training.data.splits import DataError
from md_training.loader import Batch
from md_training.losses import IGNORED_PIXEL
from md_training.models.networks import Network

log = logging.getLogger(__name__)

PLAUSIBLE = {"classes": 20.0, "boxes": 20.0, "segmentation": 3 * math.log(len(SEGMENTATION))}
"""First loss of a task, above which something is probably wrong; guessing costs log(classes) in a segmentation."""


def check_batch(batch: Batch, network: Network) -> None:
    """Raise DataError where a batch cannot be learnt from; warn where it can, but looks wrong."""
    settings = network.settings
    if not bool(batch.images.isfinite().all()):
        raise DataError("the network's input is not finite in the first batch: look at the images and the augmentation")
    for camera, channels in zip(settings.inputs, batch.images.split(3, dim=1), strict=False):
        if float(channels.amax() - channels.amin()) == 0:
            log.warning("every %s image of the first batch is of one colour: is the camera covered?", camera)
    if "segmentation" in settings.tasks:
        values = batch.mask.unique()
        wrong = values[(values >= len(SEGMENTATION)) & (values != IGNORED_PIXEL)].tolist()
        if wrong:
            raise DataError(f"masks have the values {wrong}, not in 0..{len(SEGMENTATION) - 1} or {IGNORED_PIXEL}")
    if "detection" in settings.tasks and len(batch.boxes):
        _check_boxes(batch, network)


def _check_boxes(batch: Batch, network: Network) -> None:
    boxes, (width, height) = batch.boxes, network.settings.input_size
    if int(batch.labels.min()) < 0 or int(batch.labels.max()) >= len(network.settings.detection_classes):
        raise DataError(f"labels {batch.labels.unique().tolist()} of classes {network.settings.detection_classes}")
    limits = boxes.new_tensor([width, height, width, height]) + 0.5
    if bool((boxes[:, 2:] <= boxes[:, :2]).any() | (boxes < -0.5).any() | (boxes > limits).any()):
        raise DataError(f"boxes of the first batch are empty or outside of the {width}x{height} px of the network")
    best = torch.stack([row.max() for row in box_iou(boxes, network.anchors)])
    missed = boxes[best < IGNORE_IOU]
    if len(missed) > len(boxes) / 2:
        sizes = (missed[:, 2:] - missed[:, :2]).median(dim=0).values.tolist()
        log.warning(
            "%d of %d objects of the first batch overlap no anchor by %.1f (median %.0fx%.0f px of the network): the "
            "detector will hardly learn them; set network.detection.anchor_side and anchor_ratios, or a larger input",
            len(missed),
            len(boxes),
            IGNORE_IOU,
            *sizes,
        )


def check_first_loss(terms: Mapping[str, float]) -> None:
    """Warn where a task's first loss is larger than that of a network that knows nothing."""
    for name, limit in PLAUSIBLE.items():
        if terms.get(name, 0.0) > limit:
            log.warning(
                "the first loss of %s is %.3g, expected below %.3g: look at data and weights", name, terms[name], limit
            )
