"""Making and reading rosbag2 files without ROS, on the rosbags library."""
