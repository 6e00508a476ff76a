"""Ground truth in files: the annotation formats that evaluation and training read, without PyTorch and without ROS."""
