"""config/nav2*.yaml, config/autoware.yaml and the pages of docs/integration: that they say what the node does."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from md_perception.labels import SEGMENTATION
from md_perception.outputs.navigation import AUTOWARE_MASK, check_mask_topic
from md_perception.parameters import TABLE, Parameters

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
PAGES = sorted((ROOT / "docs" / "integration").glob("*.md"))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def parameters_of(name: str) -> Parameters:
    """Read a file of config/ as the node does."""
    given = flatten(YAML(typ="safe").load((CONFIG / name).read_text())["/**"]["ros__parameters"])
    return Parameters.from_values({d.name: d.default for d in TABLE} | given)


def nav2_of(name: str) -> dict[str, Any]:
    return YAML(typ="safe").load((CONFIG / name).read_text())


def test_the_parameters_beside_nav2_are_valid_and_make_obstacles() -> None:
    settings = parameters_of("nav2.yaml").navigation_settings().obstacles
    assert settings.source == "tf"
    assert [group.name for group in settings.groups] == ["people", "vehicles", "things"]


def test_the_costmap_reads_all_groups_so_that_their_points_count() -> None:
    settings = parameters_of("nav2.yaml").navigation_settings().obstacles
    layer = nav2_of("nav2_costmap.yaml")["local_costmap"]["local_costmap"]["ros__parameters"]["md_obstacles"]
    sources = layer["observation_sources"].split()
    assert sources == [*(group.name for group in settings.groups), "clearing"]
    for source in sources:
        entry = layer[source]
        assert entry["topic"] == f"/obstacles/{source}"
        assert entry["data_type"] == "PointCloud2"
        assert (entry["marking"], entry["clearing"]) == ((False, True) if source == "clearing" else (True, False))
        # Nav2's default for a source is 0.0, which drops every point.
        assert entry["min_obstacle_height"] < settings.ground.point_height_m < entry["max_obstacle_height"]
        reach = entry["raytrace_max_range" if source == "clearing" else "obstacle_max_range"]
        assert reach >= settings.ground.max_range_m
    assert layer["plugin"] == "nav2_costmap_2d::ObstacleLayer"


def test_the_collision_monitor_reads_people_and_has_a_timeout() -> None:
    monitor = nav2_of("nav2_costmap.yaml")["collision_monitor"]["ros__parameters"]
    assert monitor["people"]["topic"] == "/obstacles/people"
    assert 0 < monitor["source_timeout"] <= 1.0
    assert monitor["people"]["min_height"] < Parameters.defaults().ground_point_height_m


def test_the_semantic_layer_names_all_classes_and_the_unlabelled_lower_no_other_layers_cost() -> None:
    plugins = nav2_of("nav2_semantic_layer.yaml")["local_costmap"]["local_costmap"]["ros__parameters"]
    camera = plugins["semantic_layer"]["camera"]
    classes = [name for kind in camera["class_types"] for name in camera[kind]["classes"]]
    assert sorted(classes) == sorted(SEGMENTATION.classes)
    # By the greatest cost of all layers, and with one that marks what no class names: a wall is unlabelled.
    assert plugins["semantic_layer"].get("combination_method", 1) == 1
    assert "voxel_layer" in plugins["plugins"]
    assert [camera[f"{name}_topic"] for name in ("segmentation", "confidence", "labels")] == [
        "/segmentation/mask",
        "/segmentation/confidence",
        "/segmentation/label_info",
    ]


def test_the_parameters_beside_autoware_are_valid_and_encode_the_mask() -> None:
    settings = parameters_of("autoware.yaml").navigation_settings()
    assert settings.mask_encoding == "autoware_rle"
    assert dict(settings.object_labels or ()) == {"person": "PEDESTRIAN", "bicycle": "BICYCLE", "car": "CAR"}
    assert "road" not in dict(settings.mask_labels).values()


@pytest.mark.parametrize("number", ["", "0", "7"])
def test_a_raw_mask_is_kept_from_the_topics_of_autoware(number: str) -> None:
    topic = f"/perception/object_recognition/detection/mask{number}"
    with pytest.raises(ValueError, match=r"a raw mask must not go out on .*mask_encoding:=autoware_rle"):
        check_mask_topic("raw", topic)
    with pytest.raises(ValueError, match="a raw mask must not go out"):
        check_mask_topic("raw", topic[1:])  # relative, as a launch argument may be
    check_mask_topic("autoware_rle", topic)


@pytest.mark.parametrize("topic", ["/segmentation/mask", "segmentation/mask", "/front/segmentation/mask"])
def test_run_lengths_are_kept_from_the_topics_of_images(topic: str) -> None:
    with pytest.raises(ValueError, match=r"run lengths must not go out on .*mask_encoding:=raw"):
        check_mask_topic("autoware_rle", topic)
    check_mask_topic("raw", topic)
    check_mask_topic("raw", "/mask")


def test_the_pages_name_parameters_files_and_topics_that_exist() -> None:
    known = {d.name for d in TABLE}
    groups = {name.split(".")[0] for name in known if "." in name}
    assert len(PAGES) == 5
    for page in [ROOT / "docs" / "integration.md", *PAGES]:
        text = page.read_text()
        for name in re.findall(r"`([a-z]+\.[a-z_]+)", text):
            if name.split(".")[0] in groups:
                assert name in known, f"{page.name}: {name}"
        for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_launch_line_for_autoware_is_one_that_is_not_refused() -> None:
    for text in ((ROOT / "docs/integration/autoware.md").read_text(), (CONFIG / "autoware.yaml").read_text()):
        (topic,) = set(re.findall(r"mask_topic:=(\S+)", text))
        assert AUTOWARE_MASK.search(topic)
        assert "mask_encoding:=autoware_rle" in text
