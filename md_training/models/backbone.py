"""ResNet-18 with a stem for RGB, or for RGB and thermal stacked to six channels (the paper's one-stream student)."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.models.resnet import ResNet

log = logging.getLogger(__name__)

Level = Literal["c2", "c3", "c4", "c5"]
CHANNELS: dict[Level, int] = {"c2": 64, "c3": 128, "c4": 256, "c5": 512}
"""Channels of each feature map."""
STRIDES: dict[Level, int] = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
"""Pixels of the network's input per cell of each feature map, where the backbone is not dilated."""


@dataclass(frozen=True)
class Features:
    """Feature maps of one batch, float (B, C, H / stride, W / stride) with the CHANNELS and STRIDES of their names.

    Where the backbone is dilated, C4 and C5 have at most its output stride.
    """

    c2: Tensor
    c3: Tensor
    c4: Tensor
    c5: Tensor


class Backbone(nn.Module):
    """ResNet-18 without its classifier. input_channels: 3 for one camera, 6 for RGB beside thermal in three copies.

    output_stride: of C5. At 16 and 8 the last layers are dilated instead of strided; the weights are the same.
    one_thermal_mean: see EqualCopies; the last three channels are thermal's.
    """

    def __init__(
        self, input_channels: int, output_stride: Literal[8, 16, 32] = 32, *, one_thermal_mean: bool = False
    ) -> None:
        super().__init__()
        self.copies: nn.Module = EqualCopies() if one_thermal_mean else nn.Identity()
        resnet = resnet18()
        resnet.conv1 = widen_stem(resnet.conv1, input_channels)
        self.stem = nn.Sequential()
        for name in ("conv1", "bn1", "relu", "maxpool"):
            self.stem.add_module(name, getattr(resnet, name))
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.layer3, self.layer4 = resnet.layer3, resnet.layer4
        if output_stride == 8:
            dilate(self.layer3, 1)
            dilate(self.layer4, 2)
        elif output_stride == 16:
            dilate(self.layer4, 1)

    def forward(self, image: Tensor) -> Features:
        """image: float (B, input_channels, H, W), normalised; H and W multiples of 32."""
        c2 = self.layer1(self.stem(self.copies(image)))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return Features(c2, c3, c4, self.layer4(c4))

    def load_imagenet(self, resnet: ResNet) -> None:
        """Copy the weights of a classifier; its stem is repeated over this one's channels."""
        conv = self.stem.get_submodule("conv1")
        assert isinstance(conv, nn.Conv2d)
        conv.load_state_dict(widen_stem(resnet.conv1, conv.in_channels).state_dict())
        self.stem.get_submodule("bn1").load_state_dict(resnet.bn1.state_dict())
        for name in ("layer1", "layer2", "layer3", "layer4"):
            self.get_submodule(name).load_state_dict(resnet.get_submodule(name).state_dict())


class EqualCopies(nn.Module):
    """Replaces each of the last three channels by their mean.

    The three copies of a thermal image are normalised by the means and deviations of red, green and blue; after this
    they have one of each, preprocess.THERMAL_MEAN and THERMAL_STD, so that a first convolution that follows can be
    folded to a single thermal channel (export.fold_input).
    """

    def forward(self, image: Tensor) -> Tensor:
        mean = image[:, -3:].mean(dim=1, keepdim=True)
        return torch.cat([image[:, :-3], mean.expand(-1, 3, -1, -1)], dim=1)


def dilate(layer: nn.Sequential, dilation: int) -> None:
    """Take the stride of two off a ResNet layer, in place, and dilate what follows it in the layer.

    dilation: of the map that enters, 1 where no layer before was dilated. Every other cell of the result, in both
    directions, is what the strided layer gives.
    """
    for index, block in enumerate(layer):
        for name, conv in block.named_modules():
            if not isinstance(conv, nn.Conv2d):
                continue
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                rate = dilation if index == 0 and name == "conv1" else 2 * dilation
                conv.dilation = conv.padding = (rate, rate)


def widen_stem(conv: nn.Conv2d, input_channels: int) -> nn.Conv2d:
    """Return a first convolution for more channels that gives the same output when the input is repeated.

    The paper's stem: six input channels, the ImageNet weights duplicated and halved, so that
    widened(cat([x, x])) == conv(x).
    """
    if input_channels % conv.in_channels:
        raise ValueError(f"{input_channels} input channels are no multiple of the stem's {conv.in_channels}")
    copies = input_channels // conv.in_channels
    wide = nn.Conv2d(input_channels, conv.out_channels, 7, stride=2, padding=3, bias=False)
    with torch.no_grad():
        wide.weight.copy_(conv.weight.repeat(1, copies, 1, 1) / copies)
    return wide


def initialise(backbone: Backbone, weights: str) -> None:
    """Give the backbone its first weights.

    weights: `none` (training from scratch, and the log says so), `imagenet` (torchvision downloads its IMAGENET1K_V1
    into its own cache), or the path of a file with torchvision's ResNet-18 state dict.
    Raises ValueError where the file is not one, or the download fails.
    """
    if weights == "none":
        log.warning("the backbone starts from random weights: training from scratch")
        return
    if weights == "imagenet":
        try:
            backbone.load_imagenet(resnet18(weights=ResNet18_Weights.IMAGENET1K_V1))
        except OSError as error:
            raise ValueError(
                f"backbone weights imagenet: {ResNet18_Weights.IMAGENET1K_V1.url} cannot be downloaded ({error}); name "
                "the file, downloaded elsewhere, or none to train from scratch"
            ) from error
        log.info("the backbone starts from torchvision's IMAGENET1K_V1")
        return
    resnet = resnet18()
    try:
        resnet.load_state_dict(torch.load(Path(weights), map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise ValueError(f"backbone weights {weights}: there is no such file; use none, imagenet or a path") from None
    except Exception as error:
        raise ValueError(f"backbone weights {weights} are not torchvision's ResNet-18 state dict: {error}") from error
    backbone.load_imagenet(resnet)
    log.info("the backbone starts from %s", weights)
