"""The choice of reliability."""

import pytest
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

from md_perception.ros import qos

RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT


@pytest.mark.parametrize(
    ("wish", "offered", "asked"),
    [
        ("auto", [], RELIABLE),
        ("auto", [RELIABLE], RELIABLE),
        ("auto", [RELIABLE, BEST_EFFORT], BEST_EFFORT),
        ("auto", [BEST_EFFORT], BEST_EFFORT),
        ("reliable", [BEST_EFFORT], RELIABLE),
        ("best_effort", [RELIABLE], BEST_EFFORT),
    ],
)
def test_auto_is_reliable_when_every_publisher_offers_it(wish, offered, asked):
    assert qos.choose_reliability(wish, offered) is asked


def test_results_are_reliable_and_label_info_is_latched():
    assert qos.RESULT.reliability is RELIABLE
    assert qos.RESULT.durability is not DurabilityPolicy.TRANSIENT_LOCAL
    assert (qos.LATCHED.reliability, qos.LATCHED.durability) == (RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)
    assert qos.camera_profile(BEST_EFFORT, 3).depth == 3
