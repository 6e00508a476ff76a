"""Every QoS profile of the node by name, and the choice of reliability that a subscription makes from its publishers.

A best-effort reader accepts every publisher, but loses most camera images on a stock driver's transport, without a
word. A reliable reader loses none, but hears nothing at all from a best-effort publisher. So `auto`: reliable when
every publisher of the topic offers it, best effort otherwise, asked again when the publishers change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

from md_perception.parameters import Reliability

RESULT = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.RELIABLE)
"""Results and status: reliable satisfies reliable and best-effort readers alike."""

LATCHED = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
"""What a late subscriber has to get: label info."""

CAMERA_INFO = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Best effort hears every publisher; these messages are small, and the next one says the same."""

DEPTH = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Depth images and clouds, which drivers publish best effort; without one, obstacles are placed by the ground."""

DIAGNOSTICS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=10, reliability=ReliabilityPolicy.RELIABLE)

_NAMES = {ReliabilityPolicy.RELIABLE: "reliable", ReliabilityPolicy.BEST_EFFORT: "best_effort"}


def camera_profile(reliability: ReliabilityPolicy, depth: int) -> QoSProfile:
    """Return the profile of a camera subscription: the newest `depth` images, volatile."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=reliability)


def publisher_overrides() -> QoSOverridingOptions:
    """Return a fresh set of options: `qos_overrides.<topic>.publisher.{history,depth,reliability}` may be set."""
    return QoSOverridingOptions.with_default_policies()


def choose_reliability(wish: Reliability, offered: Sequence[ReliabilityPolicy]) -> ReliabilityPolicy:
    """Return the reliability to ask for, given what each publisher of the topic offers.

    Without a publisher `auto` asks for reliable, what camera drivers' publishers and bag players mostly offer.
    """
    if wish == "reliable":
        return ReliabilityPolicy.RELIABLE
    if wish == "best_effort":
        return ReliabilityPolicy.BEST_EFFORT
    every = all(offer == ReliabilityPolicy.RELIABLE for offer in offered)
    return ReliabilityPolicy.RELIABLE if every else ReliabilityPolicy.BEST_EFFORT


@dataclass(frozen=True)
class InputState:
    """What diagnostics say of one camera subscription.

    topic: resolved name. publishers: how many there are. reliability: what the subscription asks for.
    offered: what each publisher offers. incompatible: name of the policy that shuts a publisher out, or "".
    """

    topic: str
    publishers: int
    reliability: str
    offered: tuple[str, ...]
    incompatible: str

    @property
    def cure(self) -> str:
        """What to do about an incompatible publisher."""
        if self.incompatible.upper().endswith("RELIABILITY"):
            return "set its reliability parameter to 'auto' or 'best_effort', or make the publisher reliable"
        return f"let the publisher's {self.incompatible.lower()} policy match a volatile, keep-last subscription"


class CameraSubscription:
    """A subscription to a camera topic that follows its publishers' reliability.

    All methods run on the executor's thread; `update` is called at activation and by a slow timer.

    callback: gets each message, and rclpy's message info if it takes two arguments.
    warn: gets one line for the log when a publisher is shut out.
    changed: gets one line for the log when the subscription was made anew with another reliability.
    """

    def __init__(
        self,
        node: Node,
        message_type: type,
        topic: str,
        callback: Callable[..., None],
        *,
        wish: Reliability,
        depth: int,
        warn: Callable[[str], None],
        changed: Callable[[str], None],
    ) -> None:
        self._node = node
        self._message_type = message_type
        self._topic = topic
        self._callback = callback
        self._wish: Reliability = wish
        self._depth = depth
        self._warn = warn
        self._changed = changed
        self._incompatible = ""
        self._reliability = choose_reliability(wish, self._offered())
        self._subscription: Subscription | None = self._create()

    @property
    def topic(self) -> str:
        """The resolved topic name (after namespace and remapping)."""
        return str(self._node.resolve_topic_name(self._topic))

    def state(self) -> InputState:
        """Return what diagnostics say of this input."""
        offered = tuple(_NAMES.get(offer, "unknown") for offer in self._offered())
        return InputState(self.topic, len(offered), _NAMES[self._reliability], offered, self._incompatible)

    def update(self) -> None:
        """Make the subscription anew if its publishers call for another reliability."""
        offered = self._offered()
        if not offered or self._subscription is None:
            return  # nobody to follow: keep what there is rather than flap while a driver restarts
        if self._of_reliability and all(offer == ReliabilityPolicy.RELIABLE for offer in offered):
            self._incompatible = ""  # the publisher that was shut out is gone
        reliability = choose_reliability(self._wish, offered)
        if reliability == self._reliability:
            return
        self._node.destroy_subscription(self._subscription)
        self._reliability = reliability
        self._incompatible = ""
        self._subscription = self._create()
        self._changed(f"{self.topic}: subscribing {_NAMES[reliability]}, as its publishers call for")

    def destroy(self) -> None:
        """Release the subscription."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    @property
    def _of_reliability(self) -> bool:
        """Whether a publisher is shut out by its reliability."""
        return self._incompatible.upper().endswith("RELIABILITY")

    def _offered(self) -> list[ReliabilityPolicy]:
        infos = self._node.get_publishers_info_by_topic(self.topic)
        return [ReliabilityPolicy(info.qos_profile.reliability) for info in infos]

    def _create(self) -> Subscription:
        # Reliability is left out of the overrides: as a qos_overrides parameter it would keep the first answer of
        # `auto` for ever. It has a parameter of its own.
        overrides = QoSOverridingOptions((QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH))
        return self._node.create_subscription(
            self._message_type,
            self._topic,
            self._callback,
            camera_profile(self._reliability, self._depth),
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible),
            qos_overriding_options=overrides,
        )

    def _on_incompatible(self, event: Any) -> None:
        self._incompatible = qos_policy_name_from_kind(event.last_policy_kind)
        if self._wish == "auto" and self._of_reliability:
            self.update()  # cured here and now; nothing to tell the user but the change itself
            if not self._incompatible:
                return
        state = self.state()
        self._warn(
            f"{state.topic}: a publisher offers an incompatible {self._incompatible}; nothing will be received from "
            f"it: {state.cure}"
        )
