"""Can the networks learn at all: teacher and student know four scenes by heart after a few hundred steps.

What keeps them from it, should it fail: targets that contradict one another, a branch without a gradient, statistics of
BatchNorm in evaluation that are not those of training.
"""

from dataclasses import replace

import pytest
import torch

from md_perception.metrics.segmentation import SegmentationScores
from md_training.data.augment import NO_AUGMENTATION
from md_training.data.sample import Sample
from md_training.data.synthetic import SceneData, render
from md_training.evaluate import evaluate
from md_training.loader import Batches
from md_training.models.networks import Architecture, NetworkSettings, make_network
from md_training.models.pspnet import PSPNetSettings
from md_training.models.retinanet import RetinaNetSettings
from md_training.presets import Optimisation, Run
from md_training.train import Trainer

SIZE = (128, 96)
STRIDE = 4
"""Of the segmentation's logits. On the scenes' own masks, in which a pole is one pixel wide, not even free logits of
this stride reach a loss below .030; on masks of such cells they reach .004."""
SMALLEST_PX = (4, 12)
"""Width and height of the smallest objects that are asked for; at this size, others are a few pixels."""


def four_scenes(thermal_size: tuple[int, int]) -> tuple[SceneData, list[Sample]]:
    data = SceneData(camera_size=SIZE, thermal_size=thermal_size, scenes=4)
    samples = []
    for sample in render(data.training_seeds, data, SIZE):
        sides = sample.boxes[:, 2:] - sample.boxes[:, :2]
        cells = sample.mask[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
        samples.append(
            replace(
                sample,
                ignored=sample.ignored | (sides < SMALLEST_PX).any(axis=1),
                mask=cells.repeat(STRIDE, axis=0).repeat(STRIDE, axis=1),
            )
        )
    return data, samples


@pytest.mark.long
@pytest.mark.parametrize(
    ("architecture", "thermal_size"), [("one_stream", (32, 24)), ("two_stream", SIZE)], ids=["student", "teacher"]
)
def test_four_scenes_are_learnt_by_heart(architecture: Architecture, thermal_size: tuple[int, int]) -> None:
    data, samples = four_scenes(thermal_size)
    run = Run(
        name="overfit",
        network=NetworkSettings(
            input_size=SIZE,
            architecture=architecture,
            detection=RetinaNetSettings(anchor_side=10.0, anchor_ratios=(0.35, 0.8, 1.6)),
            segmentation=PSPNetSettings(output_stride=STRIDE, auxiliary=False, dropout=0.0),
        ),
        data=data,
        augmentation=NO_AUGMENTATION,
        optimisation=Optimisation(
            steps=300,
            batch_size=4,
            optimiser="adamw",
            learning_rate=4e-3,
            warmup_steps=10,
            weight_decay=0.0,
            clip_norm=10.0,
            precision="fp32",
        ),
    )
    torch.manual_seed(0)
    trainer, batches = Trainer(make_network(run.network), run), Batches(samples, run)
    terms = [trainer.step(step, batches[step]) for step in range(1, run.optimisation.steps + 1)]

    first, last = (
        {name: value for name, value in one.items() if not name.startswith("gaff")} for one in (terms[0], terms[-1])
    )
    assert sum(last.values()) < 0.01 * sum(first.values()), (first, last)
    for name in first:
        assert last[name] < 0.02 * first[name], (name, first[name], last[name])
    if architecture == "two_stream":
        assert terms[-1]["gaff_intra"] < 0.15 * terms[0]["gaff_intra"]

    scores = evaluate(trainer.result, samples)["all"]
    assert scores.detection is not None
    assert sum(scores.detection.objects.values()) == 9
    assert scores.detection.mean_ap50 == pytest.approx(1.0)
    assert isinstance(scores.segmentation, SegmentationScores)
    truth = torch.stack([torch.from_numpy(sample.mask) for sample in samples]).long()
    shares = torch.bincount(truth.flatten(), minlength=9) / truth.numel()
    accuracy = torch.tensor(scores.segmentation.accuracy)
    assert float((shares * accuracy).sum()) > 0.985
    # One pixel in twenty is not class 0: those, too.
    assert float(shares[0]) < 0.96
    assert float((shares * accuracy)[1:].sum() / shares[1:].sum()) > 0.8
