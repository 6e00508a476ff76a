"""`pip install .` for training machines without ROS; what a pyproject.toml can declare is declared there."""

from glob import glob

from setuptools import setup

# The message definitions, so that bags can be written where no ROS is installed (md_perception.bags.types)
setup(
    data_files=[
        ("share/md_perception/msg", glob("msg/*.msg")),
        ("share/vision_msgs/msg", glob("underlay/vision_msgs/msg/*.msg")),
    ]
)
