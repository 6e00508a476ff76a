"""One session for all nodes of a process that run the same student."""

import hashlib
import threading
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

from md_perception.inference.providers import SessionSettings
from md_perception.inference.session import Student
from md_perception.inference.student_file import StudentFile


class SharedStudents:
    """Loads a file of the same bytes with the same settings once, for as long as anybody holds the student.

    The sizes of the images are no such setting: a student serves several, see session.MAX_SIZES.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._students: WeakValueDictionary[tuple[str, SessionSettings], Student] = WeakValueDictionary()

    def load(self, path: Path | str, settings: SessionSettings) -> Student:
        """Return the student of a file, as Student.load does. Waits while another thread loads one."""
        file = StudentFile.read(path)
        key = hashlib.sha256(file.data).hexdigest(), replace(settings, rgb_size=None, thermal_size=None)
        with self._lock:
            student = self._students.get(key)
            if student is None:
                student = self._students[key] = Student(file, settings)
            return student
