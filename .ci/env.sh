# shellcheck shell=bash
# The environment of everything that runs here: `source .ci/env.sh` (bash), after `make setup`. May be sourced again.

_md_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
_md_options="$-" # local_setup.bash reads variables that may not be set
set +u

# _md_prepend VARIABLE FOLDER: put the folder in front of the search path, once.
_md_prepend() {
  case ":${!1}:" in
    *":$2:"*) ;;
    *) export "$1=$2${!1:+:${!1}}" ;;
  esac
}

export VIRTUAL_ENV="$_md_root/.venv"
unset PYTHONHOME
_md_prepend PATH "$VIRTUAL_ENV/bin"

if [ -d "$VIRTUAL_ENV/share/rclpy" ]; then # ROS 2 from wheels; a sourced ROS 2 distribution has done this already
  _md_prepend AMENT_PREFIX_PATH "$VIRTUAL_ENV"
  _md_prepend CMAKE_PREFIX_PATH "$VIRTUAL_ENV"
  for _md_folder in "$VIRTUAL_ENV"/lib/python3.*/site-packages/ros_*.libs "$VIRTUAL_ENV/lib"; do
    _md_prepend LD_LIBRARY_PATH "$_md_folder"
  done
  export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 # LD_LIBRARY_PATH is set: no need to start Python twice
fi

if [ -f "$_md_root/install/local_setup.bash" ]; then
  source "$_md_root/install/local_setup.bash"
fi
_md_prepend PYTHONPATH "$_md_root" # the source tree comes before what is installed

# The transport that carries camera images without loss, and on this machine only a DDS domain of this checkout's own:
# the same in every terminal
export FASTRTPS_DEFAULT_PROFILES_FILE="${FASTRTPS_DEFAULT_PROFILES_FILE:-$_md_root/config/fastdds.xml}"
export ROS_AUTOMATIC_DISCOVERY_RANGE="${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}"
export ROS_DOMAIN_ID="${ROS_DOMAIN_ID:-$(($(printf '%s' "$_md_root" | cksum | cut -d ' ' -f 1) % 101 + 1))}"
export ROS_LOG_DIR="${ROS_LOG_DIR:-$_md_root/log/ros}"

case "$_md_options" in *u*) set -u ;; esac
unset _md_root _md_options _md_folder
unset -f _md_prepend
