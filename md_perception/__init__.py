"""RGB-thermal perception for ROS 2: one-stream students on ONNX Runtime, from camera topics to detections and masks.

The runtime half of the package: it needs numpy, OpenCV, ONNX Runtime, pydantic and rosbags, and never torch.
`md_training` makes the students that it runs.
"""

from pkgutil import extend_path

# colcon generates md_perception.msg into the install tree. Extending the path lets the modules of a source
# checkout and the generated messages be one package, whichever of the two comes first on sys.path.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
