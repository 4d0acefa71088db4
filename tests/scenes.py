"""Small clips whose motion is known, uint8 [f h w c], for tests that look at videos."""

import cv2
import numpy as np


def pan(count: int, step: float, side: int = 64, seed: int = 0) -> np.ndarray:
    """A camera that pans over a soft texture, `step` pixels to the right in each frame."""
    rng = np.random.default_rng(seed)
    width = side + int(np.ceil(step * count)) + 1
    ground = rng.integers(40, 255, (side // 8 + 1, width // 8 + 1, 3), np.uint8)
    ground = cv2.resize(ground, (width, side), interpolation=cv2.INTER_CUBIC).clip(40, 255)
    places = [np.float32([[1, 0, -step * number], [0, 1, 0]]) for number in range(count)]
    return np.stack([cv2.warpAffine(ground, place, (side, side)) for place in places])


def square(count: int, side: int = 16, step: int = 2, colour=(200, 40, 40)) -> np.ndarray:
    """A square that moves right over a plain ground, 64 pixels wide and high."""
    frames = np.full((count, 64, 64, 3), 128, np.uint8)
    for number, frame in enumerate(frames):
        left = step * number % (64 - side)
        frame[24 : 24 + side, left : left + side] = colour
    return frames
