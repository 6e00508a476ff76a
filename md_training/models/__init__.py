"""The networks: backbone, RetinaNet and PSPNet heads, and the student that joins them."""
