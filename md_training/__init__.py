"""Training of the students that `md_perception` runs: models, losses, data, export. Needs torch: not for vehicles."""

import os

# Threads of OpenMP that wait for one another sleep instead of spinning: where something else runs on the machine too,
# a training step then takes less than half the time. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
