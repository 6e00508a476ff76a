"""Autoware's message types for tests, where no Autoware is installed: the fields of autoware_msgs 1.12.

Written down from autoware_perception_msgs and tier4_perception_msgs; constants and comments are left out.
"""

from rosbags.typesys import get_types_from_msg
from rosbags.typesys.store import Typestore

from md_perception.bags.types import message_store

DEFINITIONS = {
    "autoware_perception_msgs/msg/ObjectClassification": "uint8 label\nfloat32 probability",
    "autoware_perception_msgs/msg/DetectedObjectKinematics": """
geometry_msgs/PoseWithCovariance pose_with_covariance
bool has_position_covariance
uint8 orientation_availability
geometry_msgs/TwistWithCovariance twist_with_covariance
bool has_twist
bool has_twist_covariance
""",
    "autoware_perception_msgs/msg/Shape": """
uint8 type
geometry_msgs/Polygon footprint
geometry_msgs/Vector3 dimensions
""",
    "autoware_perception_msgs/msg/DetectedObject": """
float32 existence_probability
autoware_perception_msgs/ObjectClassification[] classification
autoware_perception_msgs/DetectedObjectKinematics kinematics
autoware_perception_msgs/Shape shape
""",
    "tier4_perception_msgs/msg/Feature": """
sensor_msgs/PointCloud2 cluster
sensor_msgs/RegionOfInterest roi
""",
    "tier4_perception_msgs/msg/DetectedObjectWithFeature": """
autoware_perception_msgs/DetectedObject object
tier4_perception_msgs/Feature feature
""",
    "tier4_perception_msgs/msg/DetectedObjectsWithFeature": """
std_msgs/Header header
tier4_perception_msgs/DetectedObjectWithFeature[] feature_objects
""",
}


def message_store_with_autoware() -> Typestore:
    """Return a new store with our message types and Autoware's."""
    store = message_store()
    for name, text in DEFINITIONS.items():
        store.register(get_types_from_msg(text, name))
    return store
