"""What the thermal camera of a bag sends, on a command line: the options are the node's parameters thermal.*."""

import argparse
from typing import get_args

from md_perception.sensing.thermal import Encoding, Polarity, ThermalSettings


def add_thermal_options(parser: argparse._ActionsContainer) -> None:
    """Add --thermal-encoding, --thermal-polarity and --thermal-range. parser: a parser, or a group of one."""
    parser.add_argument("--thermal-encoding", choices=get_args(Encoding), default="auto")
    parser.add_argument("--thermal-polarity", choices=get_args(Polarity), default="white_hot")
    parser.add_argument(
        "--thermal-range",
        type=float,
        nargs=2,
        metavar="VALUE",
        help="kelvin or counts that become black and white; not given: a gain control of each image",
    )


def thermal_settings(options: argparse.Namespace) -> ThermalSettings:
    """Return the settings that the options give. Raises ValueError where they do not go together."""
    return ThermalSettings(
        encoding=options.thermal_encoding,
        polarity=options.thermal_polarity,
        range=None if options.thermal_range is None else tuple(options.thermal_range),
    )
