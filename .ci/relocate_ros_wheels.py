"""Correct the CMake files of the ROS wheels in this virtual environment.

They carry the paths of the machine that built the wheels (/opt/python/cpXY-cpXY/...), where CMake would look for the
headers of Python and NumPy. May be run again: a corrected file is left alone.
"""

import re
import sys
import sysconfig
from pathlib import Path

import numpy

PREFIX = r"/opt/python/cp\d+-cp\d+"
REPLACEMENTS = {
    PREFIX + r"/lib/python3\.\d+/site-packages/numpy/_?core/include": numpy.get_include(),
    PREFIX + r"/include/python3\.\d+": sysconfig.get_path("include"),
    PREFIX: sys.prefix,
}

for path in Path(sys.prefix, "share").rglob("*.cmake"):
    original = text = path.read_text()
    for pattern, replacement in REPLACEMENTS.items():
        text = re.sub(pattern, replacement.replace("\\", r"\\"), text)
    if text != original:
        path.write_text(text)
