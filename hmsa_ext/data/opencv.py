"""OpenCV, imported in one place so that a broken installation is explained once.

The wheels ``opencv-python`` and ``opencv-python-headless`` (and their contrib forms) install the same folder ``cv2``.
With two of them the files overwrite each other, and removing one removes files of the other.
"""

from __future__ import annotations

from importlib import metadata

WHEELS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")


def installed_wheels() -> list[str]:
    """Names of the installed wheels that provide ``cv2``."""
    found = []
    for name in WHEELS:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def explain_import_failure(wheels: list[str], reason: str) -> str:
    """The fault and the commands that mend it, given the wheels found and the text of the failure."""
    start = f"OpenCV (cv2) does not work here: {reason}."
    if len(wheels) > 1:
        return (
            f"{start} {len(wheels)} wheels that share the folder cv2 are installed, {', '.join(wheels)}, and "
            f"overwrite each other. Keep one: pip uninstall -y {' '.join(wheels)} && pip install opencv-python-headless"
        )
    if not wheels:
        return f"{start} No OpenCV wheel is installed: pip install opencv-python-headless"
    if "headless" not in wheels[0]:
        return (
            f"{start} {wheels[0]} needs the libraries of a desktop (libGL and others). The headless wheel does "
            f"not: pip uninstall -y {wheels[0]} && pip install opencv-python-headless"
        )
    return f"{start} Its files may be damaged: pip install --force-reinstall --no-deps {wheels[0]}"


try:
    import cv2
except (ImportError, AttributeError) as error:
    raise ImportError(explain_import_failure(installed_wheels(), f"{type(error).__name__}: {error}")) from error
# After one of two wheels was uninstalled, the rest of cv2 may still import as an empty namespace package.
if not hasattr(cv2, "imdecode"):
    raise ImportError(explain_import_failure(installed_wheels(), "the module imports but is empty"))

__all__ = ["WHEELS", "cv2", "explain_import_failure", "installed_wheels"]
