"""The operating mode: what the node runs on, decided from the ages of its inputs, with hysteresis."""

from collections.abc import Collection
from dataclasses import dataclass

from md_perception.results import Mode


@dataclass(frozen=True)
class HealthSettings:
    """timeout_s: a camera (or the pairing) that gave nothing for so long is lost. recovery_pairs: pairs in a row after
    which a student with thermal takes over again from a visible-only one.
    """

    timeout_s: float = 1.0
    recovery_pairs: int = 3

    def __post_init__(self) -> None:
        if not self.timeout_s > 0 or self.recovery_pairs < 1:
            raise ValueError(f"the timeout must be above 0 s and recovery_pairs at least 1, got {self}")


class ModeSelector:
    """Decides between the modes for which there is a student. Not locked; the caller's steady clock throughout.

    - FUSED begins with the first pair, or, out of VISIBLE_ONLY, with `recovery_pairs` pairs in a row; it holds while
      the last pair is younger than the timeout, so that single frames without a partner do not make the mode flap.
    - otherwise VISIBLE_ONLY while RGB frames come, THERMAL_ONLY while thermal frames come, each if it has a student;
    - otherwise STALE.
    """

    def __init__(self, available: Collection[Mode], settings: HealthSettings = HealthSettings()) -> None:
        """available: the modes that have a student."""
        self.settings = settings
        self._available = frozenset(available)
        self._rgb_ns: int | None = None
        self._thermal_ns: int | None = None
        self._pair_ns: int | None = None
        self._pairs_in_a_row = 0
        self._mode = Mode.STALE

    def rgb_arrived(self, now_ns: int) -> None:
        """Note an RGB frame."""
        self._rgb_ns = now_ns

    def thermal_arrived(self, now_ns: int) -> None:
        """Note a thermal frame."""
        self._thermal_ns = now_ns

    def pivot_decided(self, paired: bool, now_ns: int) -> None:
        """Note whether an RGB frame found its partner."""
        if paired:
            self._pair_ns = now_ns
            self._pairs_in_a_row += 1
        else:
            self._pairs_in_a_row = 0

    def mode(self, now_ns: int) -> Mode:
        """Return the mode at this time."""
        if Mode.FUSED in self._available and self._fused_holds(now_ns):
            self._mode = Mode.FUSED
        elif Mode.VISIBLE_ONLY in self._available and self._fresh(self._rgb_ns, now_ns):
            self._mode = Mode.VISIBLE_ONLY
        elif Mode.THERMAL_ONLY in self._available and self._fresh(self._thermal_ns, now_ns):
            self._mode = Mode.THERMAL_ONLY
        else:
            self._mode = Mode.STALE
        return self._mode

    def _fused_holds(self, now_ns: int) -> bool:
        if not self._fresh(self._pair_ns, now_ns):
            return False
        return self._mode is not Mode.VISIBLE_ONLY or self._pairs_in_a_row >= self.settings.recovery_pairs

    def _fresh(self, last_ns: int | None, now_ns: int) -> bool:
        return last_ns is not None and now_ns - last_ns <= self.settings.timeout_s * 1e9
