"""Pictures of trained networks: what is drawn is what was found, computed and measured, where it lies in the image."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_trees import write_yolo
from painted_samples import painted_sample
from PIL import Image

from md_perception.annotations.kaist import read_test_annotations
from md_perception.labels import DETECTION, SEGMENTATION
from md_perception.metrics.detection import TruthBoxes
from md_perception.metrics.miss_rate import REFERENCES_FPPI, class_miss_rate
from md_perception.results import Detections, StudentOutput
from md_perception.sensing.registration import sampling_matrix
from md_training.checkpoint import Checkpoint, load, save
from md_training.data.augment import NO_AUGMENTATION, distillation_batch
from md_training.data.pairs import Degradation
from md_training.data.sample import Sample, ThermalView, at_network_size
from md_training.data.sources import YoloData
from md_training.data.splits import DataError
from md_training.data.synthetic import SceneData
from md_training.distillation import DistillationSettings, attention_transfer, distillation_losses, teach
from md_training.figures.command import figures_command
from md_training.figures.curves import FPPI_LIMITS, class_curves, curve_points, kaist_curves, miss_rate_figure
from md_training.figures.drawings import Model, View, maps_of, on_camera, tally, training_panels, weight_panels
from md_training.figures.pages import (
    HEAT_OPACITY,
    Page,
    Panel,
    Row,
    Style,
    heated,
    mask_legend,
    save_pages,
    truth_boxes,
    with_boxes,
    with_mask,
)
from md_training.figures.samples import HeldOutPairs, HeldOutScenes, chosen, degradation, held_out
from md_training.models.joint import JointSettings
from md_training.models.networks import NetworkSettings, make_network
from md_training.models.pspnet import PSPNetSettings
from md_training.models.retinanet import RetinaNetSettings
from md_training.presets import Run

SIZE = (96, 64)
DATA = SceneData(camera_size=(96, 80), thermal_size=(24, 20), scenes=4, evaluation_scenes=0)
NETWORK = NetworkSettings(
    input_size=SIZE,
    detection=RetinaNetSettings(channels=8, tower_convs=1, anchor_side=16),
    segmentation=PSPNetSettings(channels=8, auxiliary=False),
)
JOINTS: dict[str, Any] = {
    "detection_joint": JointSettings(c4="identity", c5="identity"),
    "segmentation_joint": JointSettings(c5="basic"),
}
GREY = 90


def checkpoint(folder: Path, name: str, data: Any = DATA, teachers: tuple[str, ...] = (), **changes: Any) -> Path:
    """Write an untrained network; with teachers it distils both tasks."""
    network_settings = replace(NETWORK, **(JOINTS if teachers else {}) | changes)
    torch.manual_seed(len(name))
    network = make_network(network_settings)
    path = folder / f"{name}.pt"
    run = Run(name=name, network=network_settings, data=data, teachers=teachers)
    save(path, Checkpoint(run, f"{name}-1", 3, network, {}, "abc"))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher, a native and a distilled student of both tasks on small scenes."""
    folder = tmp_path_factory.mktemp("runs")
    teacher = checkpoint(folder, "teacher", replace(DATA, thermal_size=DATA.camera_size), architecture="two_stream")
    return {
        "teacher": teacher,
        "native": checkpoint(folder, "native"),
        "distilled": checkpoint(folder, "distilled", teachers=(str(teacher),)),
    }


def fine_sample(seed: int) -> Sample:
    """Return a painted sample of 96x80 that knows the thermal image as fine as the camera."""
    sample = painted_sample(seed, (96, 80), (24, 20))
    fine = painted_sample(seed + 50, (96, 80), (96, 80)).thermal
    return replace(sample, full=ThermalView(fine, sampling_matrix((96, 80), (96, 80))))


# --- what is painted onto an image


@pytest.mark.parametrize(("label", "colour"), [(1, DETECTION.palette[1]), (len(DETECTION), (200, 200, 200))])
def test_a_box_is_drawn_where_it_is(label: int, colour: tuple[int, int, int]) -> None:
    image = np.full((480, 640, 3), GREY, np.uint8)
    found = Detections(np.array([[100, 200, 180, 300]], np.float32), np.ones(1, np.float32), np.array([label]))
    drawn = with_boxes(image, found, columns=3)
    changed = (drawn == colour).all(axis=-1)
    rows, columns = np.nonzero(changed)
    # Lines of 0.6 pt at 640 px over a third of 7 inches: 2.3 px, which OpenCV draws 1 px to both sides of the edge.
    assert (rows.min(), columns.min()) == (199, 99)
    assert (rows.max(), columns.max()) == (300, 180)
    assert not changed[210:290, 110:170].any()
    assert (drawn[~changed] == GREY).all()
    assert (image == GREY).all()


def test_objects_that_are_not_asked_for_are_drawn_as_ignored() -> None:
    sample = replace(painted_sample(1), ignored=np.array([False, True, False]))
    assert truth_boxes(sample).labels.tolist() == [0, len(DETECTION), 2]
    np.testing.assert_array_equal(truth_boxes(sample).boxes, sample.boxes)


def test_a_mask_tints_its_class_and_darkens_what_was_left_out() -> None:
    image = np.full((40, 60, 3), 200, np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    mask[:10], mask[30:] = SEGMENTATION.id_of("bike"), 255
    drawn = with_mask(image, mask)
    assert (drawn[10:30] == 200).all()
    legend = mask_legend([mask])
    assert list(legend) == ["bike", "left out"]
    for row, colour in ((5, legend["bike"]), (35, legend["left out"])):
        np.testing.assert_allclose(drawn[row, 30], 0.55 * 200 + 0.45 * np.array(colour), atol=1)


def test_the_heat_of_a_map_rises_in_lightness_with_its_values() -> None:
    image = np.full((1, 5, 3), GREY, np.uint8)
    drawn = heated(image, np.array([[0, 0.25, 0.5, 0.75, 1]], np.float32)).astype(float) @ (0.299, 0.587, 0.114)
    assert (np.diff(drawn[0]) > 20).all()
    assert drawn[0, 0] == pytest.approx((1 - HEAT_OPACITY) * GREY, abs=2)  # 0 is black


def test_a_cell_of_a_map_lands_on_its_camera_pixels() -> None:
    sample = painted_sample(1, (96, 80))  # in a network input of 96x64: scaled by 0.8, 9.6 px of padding at each side
    cells = torch.zeros(8, 12)
    cells[2, 5] = 1  # network px 40..48 by 16..24
    full = on_camera(cells, SIZE, sample)
    assert full.shape == (80, 96)
    rows, columns = np.indices(full.shape)
    centre = [(axis * full).sum() / full.sum() + 0.5 for axis in (columns, rows)]
    np.testing.assert_allclose(centre, [(44 - 9.6) / 0.8, 20 / 0.8], atol=0.3)


def test_the_tally_counts_as_the_miss_rate_does() -> None:
    sample = replace(painted_sample(3), ignored=np.array([False, False, True]))  # person, bicycle, car
    boxes = np.concatenate([sample.boxes, [[0, 0, 9, 9]]]).astype(np.float32)
    found = Detections(boxes, np.linspace(0.9, 0.5, 4).astype(np.float32), np.array([0, 0, 2, 0]))
    # The person is found, a person at the bicycle and one in the corner are false, the ignored car does not count.
    assert tally(sample, found, DETECTION.classes) == "1 of 2 found, 2 false"
    assert tally(sample, found, ("car",)) == "0 of 0 found, 0 false"


# --- the maps of the transfer


@torch.no_grad()
def test_the_maps_are_those_that_the_losses_use(trained: dict[str, Path]) -> None:
    student, teacher = Model("distilled", load(trained["distilled"])), Model("teacher", load(trained["teacher"]))
    sample = fine_sample(1)
    maps = maps_of(student, [teacher], sample)
    assert list(maps) == [("detection", "c4"), ("detection", "c5"), ("segmentation", "c5")]

    small = at_network_size(sample, SIZE)
    views, _ = distillation_batch([small], NO_AUGMENTATION, [torch.Generator()])
    outputs = student.checkpoint.network(views.student)
    taught = teach(teacher.checkpoint.network, views.teacher)
    losses = distillation_losses(outputs, taught, DistillationSettings(), views.seen)
    for task, levels in (("detection", ("c4", "c5")), ("segmentation", ("c5",))):
        semantic, attention = [], []
        for level in levels:
            found = maps[task, level]  # type: ignore[index]
            pair = [getattr(side.joint[task].features, level)[0] for side in (outputs, taught)]  # type: ignore[index]
            error = (pair[0] - pair[1]).square().mean(dim=0)
            semantic.append(float((found.weight[0] * error).sum()))
            assert float(found.weight.sum()) == pytest.approx(1, abs=1e-5)
            assert found.student is not None
            assert found.teacher is not None
            attention.append(float(attention_transfer(found.student, found.teacher)))
        assert float(losses[f"{task}_semantic"]) == pytest.approx(np.mean(semantic), rel=1e-4)
        assert float(losses[f"{task}_attention"]) == pytest.approx(np.mean(attention), rel=1e-4)
    # 9.6 px at each side are padding: less than a cell of stride 16.
    assert (maps["detection", "c4"].weight > 0).all()


def test_padding_has_no_weight(trained: dict[str, Path]) -> None:
    student, teacher = Model("distilled", load(trained["distilled"])), Model("teacher", load(trained["teacher"]))
    sample = painted_sample(1, (64, 128), (16, 32))  # upright: 32 px wide between two bars of 32 px
    weight = maps_of(student, [teacher], sample)["detection", "c4"].weight[0]
    assert weight.shape == (4, 6)
    assert (weight[:, [0, 1, 4, 5]] == 0).all()
    assert float(weight[:, 2:4].sum()) == pytest.approx(1, abs=1e-5)


def test_the_weight_picture_is_brightest_where_the_weight_is_largest(trained: dict[str, Path]) -> None:
    student, teacher = Model("distilled", load(trained["distilled"])), Model("teacher", load(trained["teacher"]))
    sample = replace(fine_sample(2), rgb=np.full((80, 96, 3), GREY, np.uint8))
    maps = maps_of(student, [teacher], sample)
    panels = weight_panels(student, sample, maps, "detection")
    assert len(panels) == 2
    weight = maps["detection", "c4"].weight[0]
    assert panels[0].note == f"up to {float(weight.max()) * 24:.3g} x the mean"
    full = on_camera(weight / weight.max(), SIZE, sample)
    np.testing.assert_array_equal(panels[0].image, heated(sample.rgb, full))
    light = panels[0].image.sum(axis=-1)
    assert full[np.unravel_index(light.argmax(), light.shape)] == pytest.approx(full.max(), abs=0.02)


# --- samples


def test_each_run_sees_a_sample_by_its_own_sensor(trained: dict[str, Path]) -> None:
    shown = HeldOutScenes(2)
    models = [Model(name, load(path)) for name, path in trained.items()]  # the teacher first
    view = View(shown, "scene 9000001", models[1:] + models[:1])
    assert view.sample.thermal.shape == (20, 24)
    assert view.of(models[0]).thermal.shape == (80, 96)
    assert view.of(models[1]) is view.of(models[2])
    np.testing.assert_array_equal(view.sample.rgb, view.of(models[0]).rgb)
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    row = view.detection_row([StudentOutput(nothing, None)], ())
    assert [panel.note for panel in row.panels] == ["", "24x20", "detections: 0"]
    assert row.label in ("day, scene 9000001", "night, scene 9000001")


def test_a_folder_is_shown_with_the_sensors_of_the_runs(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set")
    shown = held_out([DATA], tmp_path / "set", "train", 5)
    assert shown.title == "set train"
    assert shown.detection_classes == DETECTION.classes
    assert shown.sample("0D", DATA).thermal.shape == (12, 16)  # scenes of 96 px seen with 24: four px become one
    assert shown.sample("0D", YoloData()).thermal.shape == (48, 64)
    assert degradation(DATA) == Degradation(4, "area")
    with pytest.raises(DataError, match="--data names the folder of a data set"):
        held_out([DATA], tmp_path / "nowhere", "", 5)
    with pytest.raises(DataError, match="--split val belongs to --data"):
        held_out([DATA], None, "val", 5)


def test_runs_on_different_data_are_told_apart_and_sensors_are_not(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    one, coarse = YoloData(tmp_path), YoloData(tmp_path, downsample=4)
    shown = held_out([one, coarse], None, "", 5)
    assert isinstance(shown, HeldOutPairs)
    assert tuple(shown.names) == ("2N",)
    with pytest.raises(DataError, match=r"different data.*--data"):
        held_out([one, YoloData(tmp_path, evaluation_split="train")], None, "", 5)
    with pytest.raises(DataError, match=r"different data.*scenes of 96x80"):
        held_out([one, DATA], None, "", 5)


def test_the_samples_are_half_by_night_and_show_something(tmp_path: Path) -> None:
    names = [f"{number}{'N' if number >= 6 else 'D'}" for number in range(12)]
    write_yolo(tmp_path, names)  # every third pair has no box: 2D, 5D, 8N, 11N
    (tmp_path / "all.txt").write_text("\n".join(names) + "\n")
    shown = held_out([], tmp_path, "all", 5)
    picked = chosen(shown, YoloData(), 4, ())
    assert sorted(name[-1] for name in picked) == ["D", "D", "N", "N"]
    assert not set(picked) & {"2D", "5D", "8N", "11N"}
    assert picked == chosen(shown, YoloData(), 4, ())
    assert set(chosen(shown, YoloData(), 12, ())) == set(names)  # the empty ones when there is nothing else
    assert chosen(shown, YoloData(), 4, ("8N", "0D")) == ["8N", "0D"]
    with pytest.raises(ValueError, match="has no sample 99D: its names are like 0D and 9N"):
        chosen(shown, YoloData(), 4, ("0D", "99D"))
    assert chosen(HeldOutScenes(3), DATA, 1, ("9000002",)) == ["scene 9000002"]


def test_what_training_sees_moves_together() -> None:
    sample = painted_sample(4, (96, 64), (96, 64))
    augmentation = replace(NO_AUGMENTATION, flip=1.0)
    as_read, _, flipped, thermal = training_panels(sample, SIZE, augmentation, draws=1, seed=0)
    left, top, right, bottom = (int(value) for value in sample.boxes[2])  # a car
    colour = DETECTION.palette[2]
    assert (as_read.image[top : bottom - 1, left] == colour).all()
    for panel in (flipped, thermal):
        assert (panel.image[top : bottom - 1, 96 - right] == colour).all()
        assert (panel.image[top : bottom - 1, 96 - left - 1] == colour).all()
    assert thermal.image[(top + bottom) // 2, 96 - (left + right) // 2].min() > 200  # the warm car itself


# --- pages


def test_a_page_has_the_width_of_the_paper_and_its_panels_lie_side_by_side(tmp_path: Path) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    panels = [Panel(np.full((40, 80, 3), colour, np.uint8), "a note") for colour in colours]
    page = Page(["one", "two", "three"], "a caption " * 40, {"person": (1, 2, 3)}, "attention")
    files = save_pages(tmp_path / "page", page, [Row("night", panels)] * 2, Style(pdf=True))
    assert [file.name for file in files] == ["page.png", "page.pdf"]
    assert files[1].read_bytes().startswith(b"%PDF")
    picture = np.array(Image.open(files[0]).convert("RGB")).astype(int)
    assert picture.shape[1] == 2100  # 7 inches of 300 dots
    edges = [np.nonzero((abs(picture - colour) < 9).all(axis=-1)) for colour in colours]
    widths = [columns.max() - columns.min() + 1 for _, columns in edges]
    assert min(widths) > 670
    assert max(widths) - min(widths) <= 1
    assert edges[0][1].max() < edges[1][1].min() < edges[1][1].max() < edges[2][1].min()
    for rows, columns in edges:  # two panels of half the height
        assert len(rows) == pytest.approx(2 * np.ptp(columns) ** 2 / 2, rel=0.02)


def test_many_samples_go_to_several_pages(tmp_path: Path) -> None:
    rows = [Row(str(number), [Panel(np.zeros((50, 50, 3), np.uint8))] * 2) for number in range(5)]
    files = save_pages(tmp_path / "page", Page(["a", "b"], ""), rows, Style(width_in=7))  # 3.4 inches each, 2 of 9
    assert [file.name for file in files] == ["page-1.png", "page-2.png", "page-3.png"]
    heights = [Image.open(file).height for file in files]
    assert heights[0] == heights[1] > heights[2]
    with pytest.raises(ValueError, match="use 2 to 40"):
        Style(width_in=0.5)


# --- the miss-rate curve


def detections_and_truth(seed: int, images: int = 12) -> tuple[list[TruthBoxes], list[Detections], list[bool]]:
    """Return two persons per image and detections: hits of random scores, some missing, and false ones."""
    random = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(images):
        corners = np.array([[10, 10], [60, 10]]) + random.integers(0, 20, (2, 2))
        boxes = np.concatenate([corners, corners + [20, 50]], axis=1).astype(np.float32)
        truth.append(TruthBoxes(boxes, np.zeros(2, np.int64), np.zeros(2, bool)))
        wrong = np.array([[100, 100, 120, 150]] * int(random.integers(0, 4)), np.float32).reshape(-1, 4)
        mine = np.concatenate([boxes[random.random(2) < 0.8], wrong])
        scores = np.sort(random.random(len(mine)))[::-1].astype(np.float32)
        found.append(Detections(mine, scores, np.zeros(len(mine), np.int64)))
    return truth, found, [index % 3 == 0 for index in range(images)]


@pytest.mark.parametrize("seed", range(4))
def test_the_curve_has_at_every_reference_the_miss_rate_that_the_metric_reads(seed: int) -> None:
    truth, found, _ = detections_and_truth(seed)
    curve = class_miss_rate(truth, found, 0, "MR2[person,made]")
    fppi, miss_rates = curve_points(curve)
    assert (fppi[0], fppi[-1]) == FPPI_LIMITS
    assert (np.diff(fppi) > 0).all()
    at_references = miss_rates[np.searchsorted(fppi, REFERENCES_FPPI, side="right") - 1]
    np.testing.assert_array_equal(at_references, curve.reference_miss_rates)


def test_a_class_is_scored_by_day_and_night_and_the_name_says_of_what() -> None:
    truth, found, night = detections_and_truth(7)
    curves = class_curves(truth, found, night, "person", "drives val")
    assert list(curves) == ["all", "day", "night"]
    assert curves["night"].name == "MR2[person,drives val night]"
    assert (curves["day"].images, curves["night"].images) == (8, 4)
    direct = class_miss_rate(truth, found, DETECTION.id_of("person"), "MR2[person,drives val all]")
    assert curves["all"].miss_rate == direct.miss_rate
    assert list(class_curves(truth, found, [False] * 12, "person", "drives")) == ["all"]
    assert class_curves(truth, found, night, "car", "drives") == {}


def test_the_picture_shows_the_curves_and_their_summary() -> None:
    curves = {
        label: class_curves(*detections_and_truth(seed), "person", "made") for seed, label in enumerate(("one", "two"))
    }
    figure = miss_rate_figure(curves, "a caption", 7.0)
    assert figure.get_size_inches()[0] == 7
    assert [place.get_title().splitlines()[0] for place in figure.axes] == [
        f"MR2[person,made {subset}]" for subset in ("all", "day", "night")
    ]
    for place, subset in zip(figure.axes, ("all", "day", "night"), strict=True):
        lines = place.get_lines()
        assert len({line.get_color() for line in lines}) == 2
        legend = place.get_legend()
        assert legend is not None
        texts = [text.get_text() for text in legend.get_texts()]
        for number, (label, of_label) in enumerate(curves.items()):
            curve = of_label[subset]
            assert curve.miss_rate is not None
            assert texts[number] == f"{100 * curve.miss_rate:.2f} %  {label}"
            steps, dots = lines[2 * number : 2 * number + 2]
            np.testing.assert_array_equal(steps.get_xdata(), curve_points(curve)[0])
            np.testing.assert_array_equal(dots.get_xdata(), REFERENCES_FPPI)
            np.testing.assert_array_equal(dots.get_ydata(), np.maximum(curve.reference_miss_rates, 0.005))
    with pytest.raises(ValueError, match="no object is annotated"):
        miss_rate_figure({"one": {}}, "", 7.0)


def test_published_detections_have_their_published_miss_rates(data_root: Path) -> None:
    annotations = read_test_annotations(data_root / "kaist" / "KAIST_annotation.json")
    curves = kaist_curves(annotations, data_root / "kaist" / "results" / "GAFF.txt")
    values = {subset: round(100 * float(curve.miss_rate or 0), 4) for subset, curve in curves.items()}
    assert values == {"all": 6.4756, "day": 8.3534, "night": 3.4593}  # the last of the release's README, 6.48 8.35 3.46
    fppi, miss_rates = curve_points(curves["all"])
    at_references = miss_rates[np.searchsorted(fppi, REFERENCES_FPPI, side="right") - 1]
    assert 100 * float(np.exp(np.log(at_references).mean())) == pytest.approx(6.4756, abs=5e-5)


# --- the command


def test_the_command_draws_all_that_a_distilled_run_allows(trained: dict[str, Path], tmp_path: Path) -> None:
    models = {"native": trained["native"], "distilled": trained["distilled"]}
    figures_command(tmp_path, **models, samples=1, scenes=2, training_views=True, score_threshold=0.01)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attention-detection.png",
        "attention-segmentation.png",
        "detections-distilled.txt",
        "detections-native.txt",
        "detections-teacher.txt",
        "detections.png",
        "masks.png",
        "miss-rate.png",
        "training-views.png",
        "weights-detection.png",
        "weights-segmentation.png",
    ]
    assert all(Image.open(path).width == 2100 for path in tmp_path.glob("*.png"))


def test_a_folder_without_any_run_shows_what_training_would_see(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set")
    figures_command(tmp_path / "out", data=tmp_path / "set", split="train", training_views=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["training-views.png"]


def test_result_files_of_kaist_need_no_run(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kaist = data_root / "kaist"
    files = {"MBNet": kaist / "results" / "MBNet.txt"}
    figures_command(tmp_path, detections=files, annotations=kaist / "KAIST_annotation.json")
    assert [path.name for path in tmp_path.iterdir()] == ["miss-rate.png"]
    assert "8.1295" in capsys.readouterr().out


def test_a_missing_teacher_costs_the_maps_only(
    trained: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = checkpoint(tmp_path, "alone", teachers=("runs/gone/checkpoint.pt",))
    figures_command(tmp_path / "out", distilled=alone, samples=1, miss_rate=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detections.png", "masks.png"]
    assert "runs/gone/checkpoint.pt is not there; name it with --teacher" in caplog.text


def test_errors_name_the_cure(trained: dict[str, Path], tmp_path: Path) -> None:
    def refused(text: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=text):
            figures_command(tmp_path / "out", **options)

    refused("there is nothing to draw: give checkpoints")
    refused("was distilled .*: use --distilled", native=trained["distilled"])
    refused("without a teacher: use --native", distilled=trained["native"])
    refused("--detections and --annotations belong together", detections={"a": tmp_path / "a.txt"})
    refused("use one of person, bicycle, car", native=trained["native"], miss_rate_class="dog")
    refused("an option of its own, --teacher", others={"teacher": trained["teacher"]})
    teachers = (str(trained["teacher"]),)
    boxes = checkpoint(tmp_path, "boxes", tasks=("detection",))
    masks = checkpoint(tmp_path, "masks", teachers=teachers, tasks=("segmentation",), detection_joint=JointSettings())
    refused("boxes.pt does detection, .*masks.pt segmentation: nothing to compare", native=boxes, distilled=masks)
    native = load(trained["native"])
    elsewhere = tmp_path / "elsewhere.pt"
    save(elsewhere, replace(native, run=replace(native.run, data=YoloData(tmp_path))))
    refused("different data", native=elsewhere, distilled=trained["distilled"])
    refused("a teacher is a two_stream one", distilled=trained["distilled"], teacher=(trained["native"],))
    assert not (tmp_path / "out").is_dir() or not list((tmp_path / "out").iterdir())
