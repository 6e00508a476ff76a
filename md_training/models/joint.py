"""The student's joint feature branch (paper, Fig. 1 B): residual blocks that stay, attention heads that are dropped."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from md_training.models.backbone import CHANNELS, Features, Level

Block = Literal["none", "identity", "bottleneck", "basic"]


@dataclass(frozen=True)
class JointSettings:
    """What each level gets before the heads of a task read it and a distillation compares it.

    `none`: not distilled. `identity`: distilled as it leaves the backbone. `basic`: behind the paper's residual block,
    two 3x3 convolutions, 0.13 times the backbone on any level. `bottleneck`: behind a cheaper one (1x1, 3x3 at half
    the channels, 1x1), 0.02 times.
    """

    c3: Block = "none"
    """Of stride 8."""
    c4: Block = "none"
    """Of stride 16."""
    c5: Block = "none"
    """Of stride 32."""
    attention: Literal["after", "before", "none"] = "after"
    """Where the attention heads read: behind the block or before it; `none` where attention is not distilled."""
    modulate: bool = False
    """Multiply the features by 1 + attention; the heads then stay in the exported student."""

    def __post_init__(self) -> None:
        if self.modulate and self.attention == "none":
            raise ValueError("modulate multiplies by the attention mask: set attention to after or before")

    @property
    def blocks(self) -> dict[Level, Block]:
        """The distilled levels."""
        blocks: dict[Level, Block] = {"c3": self.c3, "c4": self.c4, "c5": self.c5}
        return {level: block for level, block in blocks.items() if block != "none"}


DETECTION_JOINT = JointSettings(c3="bottleneck", c4="bottleneck", c5="basic")
"""All levels that RetinaNet reads, for 0.17 times the backbone."""
LITERAL_DETECTION_JOINT = JointSettings(c3="basic", c4="basic", c5="basic")
"""The paper's block on all levels that RetinaNet reads, for 0.38 times the backbone."""
SEGMENTATION_JOINT = JointSettings(c5="basic")
"""The only level that the paper's PSPNet reads."""


@dataclass(frozen=True)
class Joint:
    """What the heads of a task read and a distillation compares.

    features: the student's behind its blocks, or the teacher's fused ones; same shapes. levels: those that are
    distilled. attention: float32 (B, 1, h, w) in 0..1, at the levels that have a mask.
    """

    features: Features
    levels: tuple[Level, ...]
    attention: Mapping[Level, Tensor]


class JointBranch(nn.Module):
    """The blocks and attention heads of one task."""

    def __init__(self, settings: JointSettings) -> None:
        super().__init__()
        self.settings = settings
        self.blocks = nn.ModuleDict({level: _block(block, CHANNELS[level]) for level, block in settings.blocks.items()})
        self.attention = nn.ModuleDict()
        if settings.attention != "none":
            self.attention.update({level: nn.Conv2d(CHANNELS[level], 1, 1) for level in settings.blocks})

    def forward(self, features: Features) -> Joint:
        maps: dict[Level, Tensor] = {}
        attention: dict[Level, Tensor] = {}
        for level in self.settings.blocks:
            before: Tensor = getattr(features, level)
            after = self.blocks[level](before)
            if level in self.attention:
                read = before if self.settings.attention == "before" else after
                attention[level] = self.attention[level](read).float().sigmoid()
                if self.settings.modulate:
                    after = after * (1 + attention[level]).to(after.dtype)
            maps[level] = after
        return Joint(replace(features, **maps), tuple(maps), attention)

    def drop_attention(self) -> None:
        """Remove the heads that no result depends on."""
        if not self.settings.modulate:
            self.attention = nn.ModuleDict()


def _block(block: Block, channels: int) -> nn.Module:
    """Return a block that keeps the map's shape and at first passes it unchanged, so that a trained backbone fits."""
    if block == "identity":
        return nn.Identity()
    if block == "basic":
        basic = BasicBlock(channels, channels)
        nn.init.zeros_(basic.bn2.weight)
        return basic
    bottleneck = Bottleneck(channels, channels // 4, base_width=128)  # 128: half the channels inside
    nn.init.zeros_(bottleneck.bn3.weight)
    return bottleneck
