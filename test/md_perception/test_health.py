import pytest

from md_perception.results import Mode
from md_perception.sensing.health import HealthSettings, ModeSelector

MS = 1_000_000


class Rig:
    """A selector and a clock in ms."""

    def __init__(self, *modes: Mode) -> None:
        self.selector = ModeSelector(modes, HealthSettings(timeout_s=0.5, recovery_pairs=3))

    def frame(self, at_ms: int, paired: bool) -> Mode:
        """An RGB frame, with or without a partner."""
        self.selector.rgb_arrived(at_ms * MS)
        if paired:
            self.selector.thermal_arrived(at_ms * MS)
        self.selector.pivot_decided(paired, at_ms * MS)
        return self.selector.mode(at_ms * MS)


def test_nothing_is_stale_and_the_first_pair_is_fused() -> None:
    rig = Rig(Mode.FUSED)
    assert rig.selector.mode(0) is Mode.STALE
    assert rig.frame(0, paired=True) is Mode.FUSED


@pytest.mark.parametrize("modes", [(Mode.FUSED,), (Mode.FUSED, Mode.VISIBLE_ONLY)])
def test_single_frames_without_a_partner_do_not_make_the_mode_flap(modes: tuple[Mode, ...]) -> None:
    rig = Rig(*modes)
    assert {rig.frame(33 * i, paired=i % 5 == 0) for i in range(100)} == {Mode.FUSED}


def test_thermal_lost_and_back_with_a_visible_only_student() -> None:
    rig = Rig(Mode.FUSED, Mode.VISIBLE_ONLY)
    rig.frame(0, paired=True)
    timeline = [(at, rig.frame(at, paired=at >= 1000)) for at in range(100, 1400, 100)]
    # 500 ms after the last pair the visible-only student takes over; the third pair in a row brings fusion back.
    expected = [Mode.FUSED] * 5 + [Mode.VISIBLE_ONLY] * 6 + [Mode.FUSED] * 2
    assert [mode for _, mode in timeline] == expected
    assert timeline[5] == (600, Mode.VISIBLE_ONLY)
    assert timeline[11] == (1200, Mode.FUSED)


def test_an_interrupted_run_of_pairs_starts_counting_anew() -> None:
    rig = Rig(Mode.FUSED, Mode.VISIBLE_ONLY)
    assert rig.frame(0, paired=False) is Mode.VISIBLE_ONLY
    modes = [rig.frame(100 * (i + 1), paired) for i, paired in enumerate([True, True, False, True, True, True])]
    assert modes == [Mode.VISIBLE_ONLY] * 5 + [Mode.FUSED]


def test_without_a_visible_only_student_lost_thermal_is_stale_and_the_first_pair_brings_fusion_back() -> None:
    rig = Rig(Mode.FUSED)
    rig.frame(0, paired=True)
    assert rig.frame(501, paired=False) is Mode.STALE
    assert rig.frame(600, paired=True) is Mode.FUSED


def test_silence_of_both_cameras_is_stale() -> None:
    rig = Rig(Mode.FUSED, Mode.VISIBLE_ONLY)
    rig.frame(0, paired=True)
    assert rig.selector.mode(500 * MS) is Mode.FUSED
    assert rig.selector.mode(501 * MS) is Mode.STALE


def test_thermal_alone_needs_its_student() -> None:
    rig = Rig(Mode.FUSED, Mode.THERMAL_ONLY)
    rig.frame(0, paired=True)
    rig.selector.thermal_arrived(600 * MS)
    assert rig.selector.mode(600 * MS) is Mode.THERMAL_ONLY


@pytest.mark.parametrize("arguments", [{"timeout_s": 0.0}, {"recovery_pairs": 0}])
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="timeout must be above 0"):
        HealthSettings(**arguments)
