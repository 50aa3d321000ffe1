"""Sky, textures, light and sensor of the synthetic street scenes.

Pictures are planar here, [3, H, W]: NumPy is several times faster on long inner loops than on triples.
"""

from __future__ import annotations

import numpy as np

from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.street_canvas import GRASS, LEAF, MINERAL, MIRROR, VOID, Camera, Canvas, Colour, Dice, mix, tint


def draw_sky_picture(dice: Dice, height: int, width: int, horizon: float) -> tuple[np.ndarray, Colour]:
    """A whole picture of sky, float32 [3, height, width] from 0 to 255, and its colour at the horizon."""
    kind = dice.count(0, 3)
    if kind == 0:  # blue
        top, low, cover = (70.0, 120.0, 200.0), (185.0, 210.0, 235.0), dice.between(0.1, 0.7)
    elif kind == 1:  # overcast: as grey as concrete
        top, low, cover = tint(dice, 130, 180, 8), tint(dice, 165, 220, 8), dice.between(0.3, 0.8)
    elif kind == 2:  # hazy
        top, low, cover = (125.0, 160.0, 205.0), (215.0, 215.0, 210.0), dice.between(0.0, 0.4)
    else:  # low sun
        top, low, cover = (95.0, 110.0, 165.0), (240.0, 195.0, 150.0), dice.between(0.1, 0.6)
    fall = np.minimum(np.arange(height, dtype=np.float32) / np.float32(horizon), 1)[:, None]
    coarse = value_noise(dice, height, width, height / 5, width / 6)
    fine = value_noise(dice, height, width, height / 14, width / 16)
    cloud = np.clip((coarse + np.float32(0.5) * fine - 150) / 90, 0, 1) * np.float32(cover)
    picture = np.empty((3, height, width), np.float32)
    for channel, (high, deep, white) in enumerate(zip(top, low, mix((245.0, 245.0, 245.0), low, 0.3), strict=True)):
        base = np.float32(high) + fall * np.float32(deep - high)
        picture[channel] = base + cloud * (np.float32(white) - base)
    return picture, low


def value_noise(dice: Dice, height: int, width: int, cell_y: float, cell_x: float) -> np.ndarray:
    """Smooth noise, float32 [height, width] of 0..255: random values on a grid of the given cell, bilinear between."""
    grid = dice.bytes((max(2, round(height / cell_y)), max(2, round(width / cell_x))))
    # The exact variant is fixed-point and the same on every processor.
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR_EXACT).astype(np.float32)


def finish(dice: Dice, canvas: Canvas, camera: Camera, sky: np.ndarray, haze: Colour) -> tuple[np.ndarray, np.ndarray]:
    """Turn the painted canvas into a photograph: mirrors, shadows, haze, textures, light, void, lens and sensor.

    Returns the picture, uint8 [H, W, 3], and the label map, uint8 [H, W].
    """
    height, width = canvas.label.shape
    label, material = canvas.label, canvas.paint[..., 3]
    planes = np.ascontiguousarray(canvas.paint.transpose(2, 0, 1)[:3]).astype(np.float32)
    _reflect(dice, planes, material == MIRROR, sky)
    _shade_ground(dice, planes, canvas, camera, haze)

    light = dice.between(0.55, 1.2) if dice.chance(0.85) else dice.between(0.35, 0.5)
    planes *= _texture(dice, material, height / 128) * np.float32(light)
    for plane in planes:
        plane *= np.float32(dice.between(0.9, 1.1))  # colour of the light
    _draw_void(dice, planes, label)

    sigma = dice.between(1.5, 6) if dice.chance(0.8) else dice.between(6, 12)
    # The sum of two uniform bytes: a triangle with a standard deviation of 104.5, near enough to a bell.
    noise = dice.bytes((2, 3, height, width))
    noise = noise[0].astype(np.float32) + noise[1] - 255
    picture = _lens(np.clip(planes, 0, 255)) + noise * np.float32(sigma / 104.5)
    picture = np.clip(picture + np.float32(0.5), 0, 255).astype(np.uint8)
    return cv2.merge(list(picture)), label


def _reflect(dice: Dice, planes: np.ndarray, glass: np.ndarray, sky: np.ndarray) -> None:
    """Throw the sky of elsewhere onto the glass: a little duller, but with the texture of the sky itself."""
    height, width = glass.shape
    shift, dull = dice.count(0, width - 1), np.float32(dice.between(0.75, 1.0))
    rows = np.arange(height) // 2
    for plane, above in zip(planes, sky, strict=True):
        np.copyto(plane, np.roll(above, shift, axis=1)[rows] * dull, where=glass)


def _shade_ground(dice: Dice, planes: np.ndarray, canvas: Canvas, camera: Camera, haze: Colour) -> None:
    """Darken the shadows that lie on the ground and let the ground fade into the haze with its distance."""
    top = int(camera.horizon) + 1
    ground = canvas.label[top:] <= GRASS
    light = 1 - (canvas.shadow[top:] & ground) * np.float32(dice.between(0.25, 0.5))
    # The ground of a row is all at one depth.
    depth = camera.focal * camera.eye / (np.arange(top, camera.height) + 0.5 - camera.horizon)
    share = ground * (depth / (depth + 160)).astype(np.float32)[:, None]
    for plane, fog in zip(planes, haze, strict=True):
        lit = plane[top:] * light
        plane[top:] = lit + share * (np.float32(fog) - lit)


def _texture(dice: Dice, material: np.ndarray, unit: float) -> np.ndarray:
    """Brightness of each pixel's surface relative to its colour, float32 [H, W]; ``unit`` is pixels at 128 rows."""
    height, width = material.shape
    broad = value_noise(dice, height, width, 16 * unit, 20 * unit) - 128
    grain = value_noise(dice, height, width, 2.5 * unit, 2.5 * unit) - 128
    foliage = value_noise(dice, height, width, 4 * unit, 4 * unit) - 128
    stone = broad * np.float32(dice.between(0.15, 0.35) / 128) + grain * np.float32(dice.between(0.05, 0.18) / 128)
    leaf = broad * np.float32(dice.between(0.15, 0.35) / 128) + grain * np.float32(dice.between(0.05, 0.18) / 128)
    leaf += foliage * np.float32(dice.between(0.3, 0.6) / 128)
    return 1 + (material == MINERAL) * stone + (material == LEAF) * leaf


def _draw_void(dice: Dice, planes: np.ndarray, label: np.ndarray) -> None:
    """The bonnet of the camera's own car and the black border of a rectified picture: ignored."""
    height, width = label.shape
    if dice.chance(0.5):
        mask = np.zeros((height, width), np.uint8)
        centre = (round(width * dice.between(0.42, 0.58)), round(height * dice.between(1.08, 1.16)))
        cv2.ellipse(mask, centre, (round(width * dice.between(0.5, 0.7)), round(height * 0.21)), 0, 0, 360, 1, -1)
        shine = np.linspace(1.6, 0.5, height).astype(np.float32)[:, None]
        bonnet = mask.view(bool)
        for plane, paint in zip(planes, tint(dice, 25, 90, 6), strict=True):
            np.copyto(plane, shine * np.float32(paint), where=bonnet)
        label[bonnet] = VOID
    if dice.chance(0.4):
        wide = max(1, round(height / 128 * dice.between(1, 4)))
        everything = slice(None)
        for rows, columns in (
            (everything, slice(0, wide)),
            (everything, slice(-wide, None)),
            (slice(0, wide), everything),
        ):
            planes[:, rows, columns] = 0
            label[rows, columns] = VOID


def _lens(planes: np.ndarray) -> np.ndarray:
    """Light blur of the optics: 0.15, 0.7, 0.15 along columns and rows; the outermost pixels stay as they are."""
    for axis in (1, 2):
        blurred = planes.copy()
        middle, before, after = ((slice(None),) * axis + (part,) for part in (slice(1, -1), slice(-2), slice(2, None)))
        blurred[middle] = planes[middle] * np.float32(0.7) + (planes[before] + planes[after]) * np.float32(0.15)
        planes = blurred
    return planes
