"""From camera messages to pairs of images that a student may see."""
