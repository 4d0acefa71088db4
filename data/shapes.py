"""What the toy world's scenes are made of: the coverage of a shape, the pattern of a ground, the window in its corner.

Everything is drawn at points of a canvas of 64 by 64 units, whatever its size in pixels; masks are 0..1.
"""

import numpy as np

WINDOW_FRAME, WINDOW_PANE = (110, 70, 40), (250, 245, 120)


def coverage(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """Anti-aliased coverage in 0..1 at offsets (dx, dy) pixels from the centre of a shape; one pixel of soft edge.

    Every shape has its centroid at the centre, so that a detector's centroid is the trajectory.
    """
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.886 * radius
    elif shape == "triangle":  # points up; the inradius of an equilateral triangle is half of its circumradius
        distance = np.maximum(dy, 0.866 * np.abs(dx) - 0.5 * dy) - 0.72 * radius
    else:
        distance = np.abs(np.hypot(dx, dy) - 0.85 * radius) - 0.3 * radius
    return np.clip(0.5 - distance, 0, 1)


def pattern(name: str, x: np.ndarray, y: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Soft-edged pattern in 0..1 with a period of 12 units."""
    u, v = 2 * np.pi * (x + shift[0]) / 12, 2 * np.pi * (y + shift[1]) / 12
    wave = {"striped": np.sin(u), "dotted": np.sin(u) + np.sin(v) - 0.9, "checkered": 2 * np.sin(u) * np.sin(v)}[name]
    return np.clip(0.5 + 1.5 * wave, 0, 1)


def draw_window(canvas: np.ndarray, x: np.ndarray, y: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """A static framed window of 14 units in one corner, behind the object."""
    across, down = np.abs(x - (11 + 42 * corner[0])), np.abs(y - (11 + 42 * corner[1]))
    outer = np.clip(7.5 - np.maximum(across, down), 0, 1)[..., None]
    pane = np.clip(5.5 - np.maximum(across, down), 0, 1) * np.clip(np.minimum(across, down) - 0.5, 0, 1)
    canvas = canvas + outer * (np.array(WINDOW_FRAME) - canvas)
    return canvas + pane[..., None] * (np.array(WINDOW_PANE) - canvas)
