"""The things in a synthetic street. Each function paints one, standing on the ground at (x, z) metres.

All but :func:`draw_wires` and :func:`draw_crown` have one signature: dice, canvas, camera, x, z, the colour of leaves
and the colour of the haze, into which everything fades with distance.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from hmsa_ext.data.street_canvas import (
    CAR,
    FENCE,
    LEAF,
    MINERAL,
    MIRROR,
    PAINT,
    PEDESTRIAN,
    POLE,
    SIGN,
    TREE,
    VOID,
    Camera,
    Canvas,
    Colour,
    Dice,
    mix,
    times,
    tint,
)

# Thin objects have their own colours. Near ones are told apart by it after a few minutes of training. Far away and
# at small scales, where a post is less than a pixel wide, the colour is gone with the post.
LAMP: Colour = (20.0, 120.0, 125.0)
RUST: Colour = (190.0, 85.0, 35.0)
COATS: tuple[Colour, ...] = ((225.0, 50.0, 140.0), (240.0, 95.0, 175.0), (200.0, 30.0, 90.0))


def draw_car(dice: Dice, canvas: Canvas, camera: Camera, x: float, z: float, leaves: Colour, haze: Colour) -> None:
    """A car seen from behind, a box with a cabin, its near flank towards the vanishing point."""
    fog = z / (z + 160)
    vivid = (dice.between(20, 230), dice.between(20, 230), dice.between(20, 230))
    colour = mix(vivid if dice.chance(0.4) else tint(dice, 30, 220, 12), haze, fog)
    half, long, tall = dice.between(0.8, 0.95), dice.between(3.4, 4.6), dice.between(1.35, 1.8)
    belt, end = tall * 0.58, z + long
    shadow = camera.points(
        [(x - half - 0.15, 0, z - 0.2), (x + half + 0.15, 0, z - 0.2), (x + half, 0, end), (x - half, 0, end)]
    )
    canvas.polygon(shadow, mix((22, 22, 26), haze, fog), MINERAL, None)

    dark, flank = mix((25, 25, 28), haze, fog), times(colour, 0.72)
    inner = x + half if x < 0 else x - half  # the flank that the camera sees
    canvas.polygon(
        camera.points([(inner, 0.2, z), (inner, 0.2, end), (inner, belt, end), (inner, belt, z)]), flank, PAINT, CAR
    )
    roof = inner - 0.12 if x < 0 else inner + 0.12
    cabin = [(inner, belt, z + 0.1), (inner, belt, end - 1.0), (roof, tall, end - 1.5), (roof, tall, z + 0.35)]
    canvas.polygon(camera.points(cabin), times(dark, 1.3), PAINT, CAR)
    wheel = camera.pixels(0.32, z)
    if wheel >= 1.5:
        for depth in (z + 0.75, end - 0.8):
            column, row = camera.point(inner, 0.32, depth)
            size = camera.pixels(0.32, depth)
            canvas.disc(column, row, size * min(abs(inner) / depth + 0.2, 1.0), size, dark, PAINT, CAR)
    left, bottom = camera.point(x - half, 0.2, z)
    right, middle = camera.point(x + half, belt, z)
    top = camera.point(x, tall, z + 0.35)[1]
    inset = camera.pixels(0.15, z)
    for column in (left, right - inset * 1.5):
        canvas.box(column, bottom - inset, column + inset * 1.5, bottom + inset * 1.2, dark, PAINT, CAR)
    canvas.box(left, middle, right, bottom, colour, PAINT, CAR)
    rear = (
        np.array([[left, middle], [right, middle], [right - inset, top], [left + inset, top]]).round().astype(np.int32)
    )
    canvas.polygon(rear, colour, PAINT, CAR)
    if right - left < 6:
        return
    pane = np.array(
        [
            [left + inset, middle],
            [right - inset, middle],
            [right - 1.8 * inset, top + 0.8 * inset],
            [left + 1.8 * inset, top + 0.8 * inset],
        ]
    )
    canvas.polygon(pane.round().astype(np.int32), (120, 120, 120), MIRROR, CAR)
    light = mix((200, 30, 30) if dice.chance(0.6) else (250, 240, 200), haze, fog)
    for column in (left, right - 1.6 * inset):
        canvas.box(column, middle + inset * 0.6, column + 1.6 * inset, middle + 1.6 * inset, light, PAINT, None)
    centre = (left + right) / 2
    canvas.box(
        centre - 1.8 * inset, bottom - 2 * inset, centre + 1.8 * inset, bottom - inset, times(dark, 7), PAINT, None
    )


def draw_person(dice: Dice, canvas: Canvas, camera: Camera, x: float, z: float, leaves: Colour, haze: Colour) -> None:
    """A person, standing or walking: two legs, a body, arms and a head; far away a streak of one or two pixels."""
    fog = z / (z + 160)
    tall = dice.between(1.55, 1.9)
    size = camera.pixels(tall, z)
    column, foot = camera.point(x, 0, z)
    coat = mix(times(dice.pick(COATS), dice.between(0.8, 1.1)), haze, fog)
    legs, skin = mix(tint(dice, 25, 110, 14), haze, fog), mix((200, 150, 120), haze, fog)
    hip, neck, top = foot - 0.47 * size, foot - 0.84 * size, foot - size
    body, stride = max(0.11 * size, 0.5), dice.between(0.02, 0.16) * size
    for sign in (-1, 1):
        limb = max(0.05 * size, 0.5)
        leg = [
            (column - limb, hip),
            (column + limb, hip),
            (column + sign * stride + limb, foot),
            (column + sign * stride - limb, foot),
        ]
        if size > 12:
            canvas.polygon(np.array(leg).round().astype(np.int32), legs, PAINT, PEDESTRIAN)
        else:
            canvas.box(
                column - limb + sign * stride / 2, hip, column + limb + sign * stride / 2, foot, legs, PAINT, PEDESTRIAN
            )
        if size > 20:
            canvas.box(
                column + sign * 1.35 * body - limb,
                neck + 1,
                column + sign * 1.35 * body + limb,
                hip + 2,
                times(coat, 0.8),
                PAINT,
                PEDESTRIAN,
            )
    canvas.box(column - body, neck, column + body, hip + 1, coat, PAINT, PEDESTRIAN)
    canvas.disc(column - 0.5, (neck + top) / 2, max(0.055 * size, 0.4), 0.08 * size, skin, PAINT, PEDESTRIAN)


def draw_lamp(dice: Dice, canvas: Canvas, camera: Camera, x: float, z: float, leaves: Colour, haze: Colour) -> None:
    """A street lamp with an arm over the road."""
    colour = mix(times(LAMP, dice.between(0.7, 1.2)), haze, z / (z + 160))
    tall = dice.between(5.0, 7.0)
    column, top = _post(canvas, camera, x, z, tall, dice.between(0.2, 0.4), colour)
    reach = camera.pixels(1.2, z) * (1 if x < 0 else -1)
    thick = max(1, round(camera.pixels(0.08, z)))
    canvas.box(min(column, column + reach), top, max(column, column + reach), top + thick, colour, PAINT, POLE)
    head = max(camera.pixels(0.5, z), 1.5)
    canvas.box(
        column + reach - head / 2,
        top,
        column + reach + head / 2,
        top + max(1, thick * 1.6),
        times(colour, 1.6),
        PAINT,
        POLE,
    )


def draw_sign(dice: Dice, canvas: Canvas, camera: Camera, x: float, z: float, leaves: Colour, haze: Colour) -> None:
    """A traffic sign on a thin post: round, square, a triangle or a wide board."""
    fog = z / (z + 160)
    post = mix(tint(dice, 110, 170, 6), haze, fog)
    tall, size = dice.between(2.0, 2.9), camera.pixels(dice.between(0.3, 0.5), z)
    column, top = _post(canvas, camera, x, z, tall, 0.12, post)
    ink = mix(dice.pick(((190, 25, 30), (25, 60, 170), (225, 190, 30), (20, 110, 60))), haze, fog)
    face = mix((235, 235, 235), haze, fog)
    shape = dice.count(0, 3)
    size = max(size, 1.2)
    if shape == 0:
        canvas.disc(column, top, size, size, ink, PAINT, SIGN)
        canvas.disc(column, top, size * 0.6, size * 0.6, face, PAINT, SIGN)
    elif shape == 1:
        canvas.box(column - size, top - size, column + size, top + size, ink, PAINT, SIGN)
        canvas.box(column - size * 0.5, top - size * 0.5, column + size * 0.5, top + size * 0.5, face, PAINT, SIGN)
    elif shape == 2:
        corners = [(column - size, top + size * 0.8), (column + size, top + size * 0.8), (column, top - size)]
        canvas.polygon(np.array(corners).round().astype(np.int32), ink, PAINT, SIGN)
    else:
        canvas.box(column - 2.2 * size, top - size, column + 2.2 * size, top + size * 0.6, ink, PAINT, SIGN)
        canvas.box(column - 1.7 * size, top - size * 0.35, column + 1.7 * size, top, face, PAINT, SIGN)


def draw_traffic_light(
    dice: Dice, canvas: Canvas, camera: Camera, x: float, z: float, leaves: Colour, haze: Colour
) -> None:
    """A traffic light on a post: its case counts as a sign."""
    fog = z / (z + 160)
    column, top = _post(canvas, camera, x, z, 3.2, 0.14, mix((60, 60, 60), haze, fog))
    half = max(camera.pixels(0.18, z), 0.75)
    canvas.box(column - half, top - half, column + half, top + 5 * half, mix((20, 20, 22), haze, fog), PAINT, SIGN)
    lit = dice.count(0, 2)
    colour = ((240, 40, 30), (240, 190, 40), (40, 230, 110))[lit]
    canvas.disc(column - 0.5, top + 0.5 * half + lit * 1.6 * half, half * 0.5, half * 0.5, colour, PAINT, None)


def draw_tree(dice: Dice, canvas: Canvas, camera: Camera, x: float, z: float, leaves: Colour, haze: Colour) -> None:
    """A trunk and a crown."""
    bark = mix(tint(dice, 45, 90, 8), haze, z / (z + 160))
    stem = dice.between(2.2, 3.2)
    _post(canvas, camera, x, z, stem + 0.8, dice.between(0.2, 0.35), bark, TREE, MINERAL)
    draw_crown(dice, canvas, camera, x, stem + dice.between(1.0, 1.8), z, leaves, haze)


def draw_crown(
    dice: Dice, canvas: Canvas, camera: Camera, x: float, y: float, z: float, leaves: Colour, haze: Colour
) -> None:
    """The crown of a tree, a heap of discs around (x, y, z)."""
    base, radius = mix(times(leaves, dice.between(0.7, 1.15)), haze, z / (z + 160)), dice.between(1.1, 2.2)
    number = 9 if camera.pixels(radius, z) > 8 else 5
    for index in range(number):
        column, row = camera.point(x + radius * dice.between(-0.75, 0.75), y + radius * dice.between(-0.7, 0.7), z)
        size = camera.pixels(radius * dice.between(0.3, 0.65), z)
        canvas.disc(column, row, size, size, times(base, 0.85 + 0.36 * index / number), LEAF, TREE)


def draw_fence(dice: Dice, canvas: Canvas, camera: Camera, x: float, z: float, leaves: Colour, haze: Colour) -> None:
    """Thin bars between two rails, along the street or, from ``x`` near 0, across it.

    What shows between the bars keeps its own label.
    """
    tall, unit = dice.between(1.0, 1.6), camera.height / 128
    colour = mix(times(RUST, dice.between(0.7, 1.2)), haze, z / (z + 160))
    if abs(x) > 1:
        ends = [(x, z), (x, z + dice.between(8, 28))]
    else:
        reach = dice.between(1.5, 5)
        ends = [(x - reach, z), (x + reach, z)]
    thick = max(1, round(unit * dice.between(1.3, 2.5)))
    rails = [camera.points([(ex, level * tall, ez) for ex, ez in ends]) for level in (0.2, 1.0)]
    lines = [rail + np.array([0, step]) for rail in rails for step in range(thick)]
    canvas.strokes(np.stack(lines).astype(np.int32), colour, PAINT, FENCE)
    # Bars at an equal spacing in the picture: below four pixels they would merge into a wall.
    (c0, _), (c1, _) = rails[0]
    gap = round(unit * dice.between(4, 8)) + thick
    for column in range(min(c0, c1), max(c0, c1) + 1, gap):
        if 0 <= column < camera.width:
            share = (column - c0) / (c1 - c0 or 1)
            top = rails[1][0][1] + share * (rails[1][1][1] - rails[1][0][1])
            low = rails[0][0][1] + share * (rails[0][1][1] - rails[0][0][1])
            canvas.box(column, top, column + thick, low + (low - top) * 0.25, colour, PAINT, FENCE)


def draw_void_box(dice: Dice, canvas: Canvas, camera: Camera, x: float, z: float, leaves: Colour, haze: Colour) -> None:
    """Street furniture that nobody annotated: painted, and ignored."""
    colour = mix(tint(dice, 30, 190, 30), haze, z / (z + 160))
    column, foot = camera.point(x, 0, z)
    half, tall = camera.pixels(dice.between(0.3, 0.6), z), camera.pixels(dice.between(0.7, 1.3), z)
    canvas.box(column - half, foot - tall, column + half, foot, colour, PAINT, VOID)
    canvas.box(column - half, foot - tall, column + half, foot - tall * 0.85, times(colour, 0.6), PAINT, VOID)


def draw_wires(dice: Dice, canvas: Canvas, camera: Camera, left: float, right: float) -> None:
    """Overhead wires, part of the pole class: along the street between masts, or across it from facade to facade."""
    dark, lines = tint(dice, 15, 50, 5), []
    sag = np.linspace(0, 1, 9)
    sag = 4 * sag * (1 - sag)
    if dice.chance(0.6):
        x, y = dice.pick((-left, right)) * dice.between(0.6, 1.0), dice.between(5.0, 7.0)
        step, z = dice.between(14, 26), dice.between(5, 12)
        masts = [z + index * step for index in range(int((80 - z) / step) + 1)]
        for depth in masts[::-1]:
            _post(canvas, camera, x, depth, y + 0.4, 0.28, dark)
        spans = pairwise([2.0, *masts])
        for z0, z1 in spans:
            for offset in (-0.5, 0.5):
                depth = np.linspace(z0, z1, 9)
                lines.append([(x + offset, y - 0.6 * drop, d) for drop, d in zip(sag, depth, strict=True)])
    for _ in range(dice.count(0, 2)):
        z, y = dice.between(7, 30), dice.between(5.0, 7.5)
        span = np.linspace(-left, right, 9)
        lines.append([(column, y - 0.8 * drop, z) for column, drop in zip(span, sag, strict=True)])
    if lines:
        canvas.strokes(np.stack([camera.points(line) for line in lines]), dark, PAINT, POLE)


def _post(
    canvas: Canvas,
    camera: Camera,
    x: float,
    z: float,
    tall: float,
    wide: float,
    colour: Colour,
    label: int = POLE,
    material: int = PAINT,
) -> tuple[float, float]:
    """A vertical post; returns the column of its middle and the row of its top."""
    column, foot = camera.point(x, 0, z)
    top = camera.point(x, tall, z)[1]
    thick = max(1, round(camera.pixels(wide, z)))
    if label == POLE:  # at most three pixels at the default size: near posts do not grow into surfaces
        thick = min(thick, 3 * max(1, camera.height // 128))
    left = round(column - thick / 2)
    canvas.box(left, top, left + thick, foot, colour, material, label)
    return left + thick / 2, top
