"""What the networks cost and how fast they are on this machine."""
