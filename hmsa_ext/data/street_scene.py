"""One street scene: sky, ground, facades and objects before them, painted from far to near.

A network has to tell apart:

- Wide regions that only context tells apart. Road, pavement and facades share one mineral texture and one range of
  colours, drawn for each surface of each scene. Their place, the kerb, the joints of the slabs and the rows of windows
  tell the class. Lawns and crowns share a leaf texture, panes and puddles mirror the sky.
- Thin structures that only detail shows: poles, wires, bars of fences, sign posts and distant people, one to three
  pixels wide.
- The same thing at many sizes: cars and people from a few metres to sixty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hmsa_ext.data.opencv import cv2
from hmsa_ext.data.street_canvas import (
    BUILDING,
    GRASS,
    LEAF,
    MINERAL,
    MIRROR,
    PAINT,
    PAVEMENT,
    ROAD,
    TREE,
    Camera,
    Canvas,
    Colour,
    Dice,
    mix,
    times,
    tint,
)
from hmsa_ext.data.street_objects import (
    draw_car,
    draw_crown,
    draw_fence,
    draw_lamp,
    draw_person,
    draw_sign,
    draw_traffic_light,
    draw_tree,
    draw_void_box,
    draw_wires,
)
from hmsa_ext.data.street_texture import draw_sky_picture, finish

FAR = 300.0  # metres; beyond it everything is on the horizon


@dataclass(frozen=True)
class Side:
    """One side of the street, left (-1) or right (+1).

    kerb: distance of the road's edge from the camera, metres.
    bands: (class, width in metres) from the kerb outward; the last one runs on to the horizon.
    facade: distance of the facades, metres.
    """

    sign: int
    kerb: float
    bands: tuple[tuple[int, float], ...]
    facade: float

    @property
    def edge(self) -> float:
        """Distance of the outer edge of the bands, where people and fences end."""
        return self.kerb + sum(width for _, width in self.bands)


def render(dice: Dice, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint one scene.

    Returns the picture, uint8 [height, width, 3] (red, green, blue), and its label map, uint8 [height, width].
    """
    camera = Camera(
        height,
        width,
        horizon=height * dice.between(0.36, 0.50),
        vanish=width * dice.between(0.32, 0.68),
        focal=height * dice.between(1.3, 1.8),
        eye=dice.between(1.4, 1.8),
    )
    canvas = Canvas(height, width)
    sky, haze = draw_sky_picture(dice, height, width, camera.horizon)
    cv2.merge([*sky.astype(np.uint8), np.full((height, width), PAINT, np.uint8)], canvas.paint)

    left, right = (_draw_side(dice, sign) for sign in (-1, 1))
    green = tint(dice, 70, 120, 12)
    leaves = (green[0] * dice.between(0.7, 1.0), min(green[1] * 1.15, 255), green[2] * dice.between(0.4, 0.7))
    draw_skyline(dice, canvas, camera, haze, leaves)
    draw_ground(dice, canvas, camera, left, right, leaves)
    for side in (left, right):
        draw_facades(dice, canvas, camera, side, haze, leaves)
    draw_things(dice, canvas, camera, left, right, haze, leaves)
    return finish(dice, canvas, camera, sky, haze)


def _draw_side(dice: Dice, sign: int) -> Side:
    kerb = dice.between(1.8, 6.0)
    layout = dice.pick(
        (
            (PAVEMENT,),
            (PAVEMENT,),
            (PAVEMENT, GRASS),
            (PAVEMENT, GRASS),
            (GRASS, PAVEMENT),
            (GRASS, PAVEMENT, GRASS),
            (GRASS,),
        )
    )
    bands = tuple((kind, dice.between(1.3, 4.0)) for kind in layout)
    # Mostly facades right behind the bands, sometimes a square or a lawn before them.
    open_space = dice.between(6, 20) if dice.chance(0.25) else 0.6
    return Side(sign, kerb, bands, kerb + sum(width for _, width in bands) + open_space)


def draw_skyline(dice: Dice, canvas: Canvas, camera: Camera, haze: Colour, leaves: Colour) -> None:
    """Buildings and trees at the end of the street, against the horizon."""
    unit, x = camera.height / 128, -8.0
    base = camera.horizon + 2 * unit
    while x < camera.width:
        wide, tall = dice.between(6, 28) * unit, dice.between(3, 22) * unit
        if dice.chance(0.4):
            colour = mix(leaves, haze, dice.between(0.2, 0.55))
            for _ in range(3):
                centre = x + wide * dice.between(0.1, 0.9)
                canvas.disc(
                    centre, base, wide * dice.between(0.25, 0.5), tall * dice.between(0.4, 0.7), colour, LEAF, TREE
                )
        elif dice.chance(0.75):
            colour = mix(tint(dice, 70, 190, 14), haze, dice.between(0.25, 0.6))
            canvas.box(x, base - tall, x + wide, base, colour, MINERAL, BUILDING)
            step = max(round(3 * unit), 3)
            windows = canvas.paint[
                round(base - tall) + 2 : round(base) : step, max(round(x) + 1, 0) : max(round(x + wide) - 1, 0) : 2
            ]
            windows[..., :3] = windows[..., :3] // 8 * 6
        x += wide * dice.between(0.6, 1.1)


def draw_ground(dice: Dice, canvas: Canvas, camera: Camera, left: Side, right: Side, leaves: Colour) -> None:
    """The road, the bands beside it, kerbs, slab joints, lane markings, puddles and shadows."""
    near = camera.near * 0.95

    def band(x0: float, x1: float, z0: float = near, z1: float = FAR) -> np.ndarray:
        return camera.points([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)])

    for side in (left, right):
        position = side.kerb
        paving = tint(dice, 85, 190, 12)
        for index, (kind, wide) in enumerate(side.bands):
            outer = position + wide if index + 1 < len(side.bands) else FAR
            colour, material = (paving, MINERAL) if kind == PAVEMENT else (leaves, LEAF)
            canvas.polygon(band(side.sign * position, side.sign * outer), colour, material, kind)
            if kind == PAVEMENT and dice.chance(0.7):
                _draw_joints(dice, canvas, camera, side.sign * position, side.sign * min(outer, side.facade), paving)
            position = outer
    road = tint(dice, 55, 150, 9)
    canvas.polygon(band(-left.kerb, right.kerb), road, MINERAL, ROAD)
    if dice.chance(0.3):  # a side street
        z = dice.between(14, 40)
        reach = [(-FAR, right.kerb), (-left.kerb, FAR), (-FAR, FAR)][dice.count(0, 2)]
        canvas.polygon(band(*reach, z, z + dice.between(5, 8)), road, MINERAL, ROAD)
    stone = times(paving, dice.pick((0.5, 1.45)))
    for side in (left, right):
        edge = side.sign * side.kerb
        canvas.polygon(band(edge, edge + side.sign * 0.3, near, 60), stone, MINERAL, side.bands[0][0])

    _draw_markings(dice, canvas, camera, left, right)
    for _ in range(dice.count(0, 3)):  # puddles mirror the sky and are still road
        z = dice.between(near + 0.5, 18)
        x, y = camera.point(dice.between(-left.kerb, right.kerb) * 0.8, 0, z)
        rx, ry = camera.pixels(dice.between(0.4, 1.6), z), camera.pixels(dice.between(0.3, 0.8), z) * camera.eye / z
        canvas.disc(x, y, rx, ry, (150, 150, 150), MIRROR, None)
    if dice.chance(0.6):
        _draw_shadows(dice, canvas, camera, left, right)


def _draw_joints(dice: Dice, canvas: Canvas, camera: Camera, x0: float, x1: float, paving: Colour) -> None:
    period, start = dice.between(1.0, 3.0), camera.near * 0.95
    lines = [camera.points([(x0, 0, z), (x1, 0, z)]) for z in np.arange(start, min(start + 12 * period, 26), period)]
    lines += [camera.points([(x0 + t * (x1 - x0), 0, start), (x0 + t * (x1 - x0), 0, 30)]) for t in (0.33, 0.67)]
    canvas.strokes(np.stack(lines), times(paving, 0.82), MINERAL, None)


def _draw_markings(dice: Dice, canvas: Canvas, camera: Camera, left: Side, right: Side) -> None:
    near, white = camera.near * 0.95, tint(dice, 190, 240, 8)
    quads = []
    if dice.chance(0.75):  # dashed line between the lanes
        x, dash = (right.kerb - left.kerb) / 2 + dice.between(-0.5, 0.5), dice.between(1.5, 3.5)
        quads += [(x - 0.08, x + 0.08, z, z + dash) for z in np.arange(near - dice.between(0, 2), 50, dash * 2.2)]
    if dice.chance(0.4):  # solid lines along the edges
        quads += [(x, x + 0.12, near, 60) for x in (-left.kerb + 0.4, right.kerb - 0.5)]
    if dice.chance(0.25):  # zebra crossing
        z, step = dice.between(near + 1, 16), dice.between(0.5, 0.7)
        quads += [(x, x + step, z, z + 3) for x in np.arange(-left.kerb + 0.3, right.kerb - 0.6, 2 * step)]
    if quads:
        corners = [
            camera.points([(a, 0, c), (b, 0, c), (b, 0, d), (a, 0, d)]) for a, b, c, d in quads if c > near * 0.5
        ]
        canvas.polygons(np.stack(corners), white, MINERAL, None)


def _draw_shadows(dice: Dice, canvas: Canvas, camera: Camera, left: Side, right: Side) -> None:
    """Shadows of the facades of one side, in blocks."""
    side, reach = dice.pick((left, right)), dice.between(2.0, 12.0)
    z = camera.near * 0.95
    while z < 60:
        end = z + dice.between(5, 20)
        if dice.chance(0.7):
            x0, x1 = side.sign * (side.facade + 1), side.sign * (side.facade - reach)
            slant = dice.between(-3, 3)
            far = max(end + slant, z + 1)
            corners = camera.points([(x0, 0, z), (x1, 0, max(z + slant, 1.5)), (x1, 0, far), (x0, 0, end)])
            cv2.fillConvexPoly(canvas.shadow, corners, 1)
        z = end


def draw_facades(dice: Dice, canvas: Canvas, camera: Camera, side: Side, haze: Colour, leaves: Colour) -> None:
    """The row of buildings of one side, with gaps that show trees and sky."""
    blocks, z = [], dice.between(1.5, 4.0)
    while z < 70:
        length = dice.between(6, 20)
        if dice.chance(0.78):
            blocks.append((z, z + length))
        z += length + (dice.between(2, 9) if dice.chance(0.3) else 0)
    for z0, z1 in reversed(blocks):
        if dice.chance(0.25):
            draw_crown(dice, canvas, camera, side.sign * (side.facade + 2), dice.between(3, 6), z1 + 2, leaves, haze)
        _draw_building(dice, canvas, camera, side, z0, z1, haze, leaves)


def _draw_building(
    dice: Dice, canvas: Canvas, camera: Camera, side: Side, z0: float, z1: float, haze: Colour, leaves: Colour
) -> None:
    x, deep = side.sign * side.facade, side.sign * (side.facade + dice.between(6, 14))
    tall = dice.between(3.5, 16)
    style = dice.pick(("blind", "ivy", "windows", "windows", "windows", "ribbons", "glass", "glass"))
    distance = min((z0 + z1) / 2, z0 + 8)
    fog = distance / (distance + 160)
    wall = mix(tint(dice, 65, 195, 16), haze, fog)
    material = MINERAL
    if style == "ivy":
        wall, material = mix(leaves, haze, fog), LEAF
    elif style == "glass":
        material = MIRROR
    ends = camera.points([(x, 0, z0), (deep, 0, z0), (deep, tall, z0), (x, tall, z0)])
    canvas.polygon(ends, times(wall, dice.between(0.7, 1.1)), LEAF if style == "ivy" else MINERAL, BUILDING)
    front = camera.points([(x, 0, z0), (x, 0, z1), (x, tall, z1), (x, tall, z0)])
    canvas.polygon(front, wall, material, BUILDING)

    floor, bay = dice.between(2.7, 3.6), dice.between(2.0, 5.0)
    floors = np.arange(0.9 if dice.chance(0.6) else floor, tall - 1.2, floor)
    # Windows less than two pixels wide would only be noise.
    bays = np.arange(z0 + 0.4, z1 - bay * 0.5, bay)
    bays = bays[camera.focal * abs(x) * bay / (bays * (bays + bay)) > 3]
    if style == "glass":
        lines = [camera.points([(x, y, z0), (x, y, z1)]) for y in floors]
        lines += [camera.points([(x, 0, z), (x, tall, z)]) for z in bays]
        if lines:
            canvas.strokes(np.stack(lines), times(wall, 0.55), PAINT, None)
    elif style in ("windows", "ribbons") and len(bays) and len(floors):
        share, rise = dice.between(0.4, 0.75), floor * dice.between(0.35, 0.6)
        if style == "ribbons":
            starts, stops = np.array([z0 + 0.5]), np.array([z1 - 0.5])
        else:
            starts, stops = bays, bays + bay * share
        y, a = np.meshgrid(floors, starts, indexing="ij")
        _, b = np.meshgrid(floors, stops, indexing="ij")
        depth = np.stack([a, b, b, a], -1).reshape(-1, 4)
        level = np.stack([y, y, y + rise, y + rise], -1).reshape(-1, 4)
        scale = camera.focal / depth
        corners = np.stack([camera.vanish + scale * x, camera.horizon + scale * (camera.eye - level)], -1)
        if dice.chance(0.45):
            pane, glass = (150.0, 150.0, 150.0), MIRROR
        else:
            pane, glass = mix(tint(dice, 25, 75, 10), haze, fog), PAINT
        canvas.polygons(corners.round().astype(np.int32), pane, glass, None)


def draw_things(
    dice: Dice, canvas: Canvas, camera: Camera, left: Side, right: Side, haze: Colour, leaves: Colour
) -> None:
    """Wires, then trees, lamps, signs, fences, cars and people in the order in which they hide each other."""
    if dice.chance(0.55):
        draw_wires(dice, canvas, camera, left.edge, right.edge)
    # (zone, depth, function, x). Seen from the road, objects further out never hide objects further in: zones go from
    # outside to inside, and only objects of one zone are sorted by depth.
    outer, walk, kerb, road = range(4)
    things: list[tuple] = []

    def scatter(zone: int, number: int, function: Callable, x_low: float, x_high: float, z_low: float, z_high: float):
        for _ in range(number):
            # Squared: as many things near, where they are large, as far, where there is more room.
            z = z_low + (z_high - z_low) * dice.between(0, 1) ** 2
            things.append((zone, z, function, dice.between(x_low, x_high)))

    def row(zone: int, function: Callable, x: float, start: float, step: float, end: float) -> None:
        things.extend((zone, start + index * step, function, x) for index in range(int((end - start) / step) + 1))

    for side in (left, right):
        s, first = side.sign, side.kerb + 0.4
        if dice.chance(0.65):
            row(walk, draw_lamp, s * first, dice.between(4, 16), dice.between(9, 22), 70)
        if dice.chance(0.4):
            row(walk, draw_tree, s * (first + 0.6), dice.between(5, 14), dice.between(5, 12), 60)
        if dice.chance(0.7):
            zone, x = dice.pick(((outer, side.edge), (kerb, first)))
            things.append((zone, dice.between(4, 16), draw_fence, s * x))
        if dice.chance(0.5):  # parked cars
            row(road, draw_car, s * (side.kerb - 1.0), dice.between(5, 12), dice.between(5.5, 12), dice.between(15, 50))
        scatter(walk, dice.count(0, 2), draw_sign, s * first, s * (first + 0.3), 5, 35)
        scatter(walk, dice.count(0, 7), draw_person, s * (side.kerb + 0.3), s * side.edge, 5, 40)
        scatter(walk, dice.count(0, 1), draw_void_box, s * (side.kerb + 0.5), s * side.edge, 5, 25)
    if dice.chance(0.3):
        things.append((walk, dice.between(10, 30), draw_traffic_light, right.kerb + 0.3))
    scatter(road, dice.count(0, 3), draw_car, -left.kerb * 0.6, right.kerb * 0.6, 8, 60)
    scatter(road, dice.count(0, 2), draw_person, -left.kerb, right.kerb, 10, 50)
    if dice.chance(0.15):
        things.append((road, dice.between(14, 40), draw_fence, 0.0))
    for _, z, function, x in sorted(things, key=lambda thing: (thing[0], -thing[1])):
        function(dice, canvas, camera, x, z, leaves, haze)
