"""The class lists, their colours and their ids in messages: the only place where they are written down."""

from dataclasses import dataclass

import numpy as np

UNLABELED_ID = 255
"""Reserved id of a pixel without any label in a uint8 mask (vision_msgs/LabelInfo: the largest value of the type)."""


@dataclass(frozen=True)
class ClassList:
    """An ordered list of classes; the index of a class is its id.

    name: identifier of the list, written into manifests.
    classes: class names, index = id.
    palette: RGB colour of each class, 0..255, same order.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.palette):
            raise ValueError(f"class list {self.name}: {len(self.classes)} classes but {len(self.palette)} colours")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"class list {self.name}: a class name occurs twice in {self.classes}")
        if len(self.classes) > UNLABELED_ID:
            raise ValueError(f"class list {self.name}: at most {UNLABELED_ID} classes fit a uint8 mask")

    def __len__(self) -> int:
        return len(self.classes)

    def id_of(self, class_name: str) -> int:
        """Return the id of a class; raise KeyError, with the known names, where it is not in the list."""
        try:
            return self.classes.index(class_name)
        except ValueError:
            raise KeyError(f"class {class_name!r} is not in {self.name}: {', '.join(self.classes)}") from None

    def colour_table(self) -> np.ndarray:
        """Return uint8 (256, 3): the RGB colour of every id; ids outside the list are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = self.palette
        return table


DETECTION = ClassList(
    name="rgbt_traffic_3",
    classes=("person", "bicycle", "car"),
    palette=((255, 64, 64), (64, 200, 255), (255, 200, 0)),
)
"""Classes of the detection task, in the order of the MSRS box files. A cyclist is a person and a bicycle."""

SEGMENTATION = ClassList(
    name="mfnet_9",
    classes=("unlabelled", "car", "person", "bike", "curve", "car_stop", "guardrail", "color_cone", "bump"),
    palette=(
        (0, 0, 0),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
        (0, 0, 192),
        (128, 128, 0),
        (64, 64, 128),
        (192, 128, 128),
        (192, 64, 0),
    ),
)
"""The nine classes of MFNet (Ha et al., IROS 2017), names, ids and palette as released; 0 is a trained class."""
