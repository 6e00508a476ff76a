"""Where people of the scene world really touch the ground."""

import numpy as np

from md_perception.scenes import Scene
from md_perception.scenes.actors import Drawing
from md_perception.scenes.people import Person
from md_perception.scenes.sprites import pose_at


def contact_m(scene: Scene, person: Person) -> float:
    """Return how far ahead of the camera the sole touches the ground that is lowest in the image, at time 0."""
    drawing = Drawing()
    person.draw(drawing, pose_at(scene, person, 0.0)[0], 0.0)
    soles = np.concatenate([p - (0, 0, 0.5 * width) for p, width in zip(drawing.points, drawing.widths, strict=True)])
    return float(soles[soles[:, 2] < 0.03, 0].min())
