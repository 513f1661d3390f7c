"""Buildings and furniture of the scenes: houses, sheds, fences, bridges, tents, benches, lighthouses, windmills."""

import math

from pipelines.demonstration.scenes.canvas import Brush, Canvas, Paint, any_color, hsv


def draw_house(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a house with a roof, a door and windows, each labelled as what it is."""
    rng, brush = canvas.rng, Brush(canvas, "house", x, y, height)
    half, eaves = rng.uniform(0.42, 0.75), rng.uniform(0.5, 0.68)
    texture = rng.choice(("bricks", "fine", "soft", "speckle"))
    walls = Paint(any_color(rng), texture, rng.uniform(8, 22), rng.uniform(5, 25))
    brush.box(-half, 0, half, eaves, walls)
    if rng.random() < 0.5:
        brush.box(half * 0.4, eaves, half * 0.6, 1.05, walls.darker(0.8))
    _roof(brush, half, eaves, 1.0)
    door_u, door_height = rng.uniform(-0.5, 0.5) * half, rng.uniform(0.3, 0.38)
    door = Paint(any_color(rng), rng.choice((None, "planks")), 12)
    brush.box(door_u - 0.1, 0, door_u + 0.1, door_height, door, "door")
    brush.box(door_u + 0.05, 0.14, door_u + 0.075, 0.17, Paint((240, 220, 120)), "door")
    side, top = rng.uniform(0.17, 0.24), eaves - rng.uniform(0.06, 0.1)
    glass = _glass(canvas)
    for column in (-0.72, -0.24, 0.24, 0.72):
        u = column * half
        if abs(u - door_u) > 0.1 + side / 2 and rng.random() < 0.85:
            _pane(brush, u - side / 2, top - side * 1.2, u + side / 2, top, glass)


def draw_shed(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a small wooden hut: planks, a slanted or pointed roof, a wide door, seldom a window."""
    rng, brush = canvas.rng, Brush(canvas, "shed", x, y, height * 0.8)
    half, eaves = rng.uniform(0.42, 0.7), rng.uniform(0.6, 0.78)
    wood = hsv(rng.uniform(10, 45), rng.uniform(0.2, 0.7), rng.uniform(0.3, 0.75))
    walls = Paint(wood if rng.random() < 0.7 else any_color(rng), "planks", rng.uniform(14, 28), 8)
    brush.box(-half, 0, half, eaves, walls)
    if rng.random() < 0.5:
        roof = _roof_paint(canvas)
        brush.polygon(
            [
                (-half - 0.08, eaves - 0.05),
                (half + 0.08, eaves + 0.17),
                (half + 0.08, 1),
                (-half - 0.08, eaves + 0.1),
            ],
            roof,
            "roof",
        )
    else:
        _roof(brush, half, eaves, 1.0)
    door = Paint(any_color(rng), "planks", 16)
    brush.box(-0.17, 0, 0.17, 0.48, door, "door")
    if rng.random() < 0.35:
        _pane(brush, 0.22, 0.35, min(half - 0.02, 0.4), 0.52, _glass(canvas))


def draw_fence(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a run of posts and rails."""
    rng, brush = canvas.rng, Brush(canvas, "fence", x, y, height)
    color = rng.choice(
        ((235, 235, 230), hsv(rng.uniform(15, 40), 0.5, rng.uniform(0.3, 0.7)), any_color(rng))
    )
    wood, length, step = Paint(color), rng.uniform(1.2, 3.5), rng.uniform(0.26, 0.4)
    for v in (0.3, 0.68):
        brush.box(-length, v, length, v + 0.17, wood.darker(0.86))
    pointed = rng.random() < 0.6
    u = -length
    while u < length:
        tip = 1.1 if pointed else 0.94
        brush.polygon(
            [(u, 0), (u + step * 0.6, 0), (u + step * 0.6, 0.94), (u + step * 0.3, tip), (u, 0.94)], wood
        )
        u += step


def draw_bridge(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a bridge from the side: deck, rail and piers or arches; what shows between them keeps its label."""
    rng, brush = canvas.rng, Brush(canvas, "bridge", x, y, height)
    brush.lean = 0.0
    stone = Paint(
        hsv(rng.uniform(0, 50), rng.uniform(0.05, 0.6), rng.uniform(0.35, 0.8)),
        rng.choice(("bricks", "planks", "cracks")),
        18,
        8,
    )
    half, rise, count = rng.uniform(1.3, 2.4), rng.uniform(0.0, 0.3), rng.randint(2, 4)
    for pier in range(count + 1):
        u = -half + 2 * half * pier / count
        brush.polygon([(u - 0.14, 0), (u + 0.14, 0), (u + 0.2, 0.62), (u - 0.2, 0.62)], stone.darker(0.85))
    steps = [-half + 2 * half * i / 12 for i in range(13)]
    curve = [rise * (1 - (u / half) ** 2) for u in steps]
    lower = [(u, 0.5 + bend) for u, bend in zip(steps, curve, strict=True)]
    upper = [(u, 0.78 + bend) for u, bend in zip(steps, curve, strict=True)]
    brush.polygon([*lower, *reversed(upper)], stone)
    for u, v in upper:
        brush.box(u - 0.03, v, u + 0.03, v + 0.2, stone.darker(0.7))
    brush.line([(u, v + 0.2) for u, v in upper], 0.06, stone.darker(0.75))


def draw_tent(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a ridge tent with an open or closed flap."""
    rng, brush = canvas.rng, Brush(canvas, "tent", x, y, height * 0.8)
    cloth = Paint(any_color(rng), "soft", 10, rng.uniform(8, 20))
    half, depth = rng.uniform(0.55, 0.8), rng.uniform(0.4, 0.9)
    brush.polygon([(0, 1), (depth, 0.92), (depth + half * 0.9, 0), (half, 0)], cloth.darker(0.75))
    brush.polygon([(-half, 0), (half, 0), (0, 1)], cloth)
    brush.polygon([(-half * 0.35, 0), (half * 0.35, 0), (0, 0.72)], cloth.darker(rng.choice((0.3, 0.5, 1.3))))
    brush.line([(-half, 0), (0, 1), (half, 0)], 0.03, cloth.darker(1.3))


def draw_bench(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a bench with a back rest."""
    rng, brush = canvas.rng, Brush(canvas, "bench", x, y, height)
    slats = Paint(
        hsv(rng.uniform(0, 50), 0.6, rng.uniform(0.35, 0.8)) if rng.random() < 0.6 else any_color(rng)
    )
    legs, half = slats.darker(0.5), rng.uniform(0.8, 1.15)
    for u in (-half + 0.08, half - 0.22):
        brush.box(u, 0, u + 0.14, 0.95, legs)
    for v in (0.36, 0.58, 0.8):
        brush.box(-half, v, half, v + (0.15 if v > 0.4 else 0.19), slats if v > 0.4 else slats.darker(0.8))


def draw_lighthouse(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a tall banded tower with a lantern."""
    rng, brush = canvas.rng, Brush(canvas, "lighthouse", x, y, height * 1.5)
    brush.lean = 0.0
    first = rng.choice(((205, 45, 40), (30, 60, 150), (40, 40, 40), any_color(rng)))
    paints = (Paint(first, "fine", 8, 20), Paint((240, 238, 230), "fine", 8, 20))
    bands = rng.randint(4, 7)
    for band in range(bands):
        low, high = 0.8 * band / bands, 0.8 * (band + 1) / bands
        wide, narrow = 0.17 - 0.08 * low, 0.17 - 0.08 * high
        brush.polygon([(-wide, low), (wide, low), (narrow, high), (-narrow, high)], paints[band % 2])
    brush.box(-0.14, 0.8, 0.14, 0.83, Paint((50, 50, 55)))
    brush.box(-0.08, 0.83, 0.08, 0.92, Paint(rng.choice(((255, 240, 150), (180, 210, 220)))))
    brush.polygon([(-0.12, 0.92), (0.12, 0.92), (0, 1)], paints[0].darker(0.8))


def draw_windmill(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a mill tower with four sails."""
    rng, brush = canvas.rng, Brush(canvas, "windmill", x, y, height * 1.15)
    walls = Paint(any_color(rng), rng.choice(("bricks", "planks", "soft")), 15, 18)
    brush.polygon([(-0.27, 0), (0.27, 0), (0.17, 0.66), (-0.17, 0.66)], walls)
    brush.polygon([(-0.2, 0.64), (0.2, 0.64), (0.1, 0.8), (-0.1, 0.8)], walls.darker(0.55))
    sail, turn = Paint(rng.choice(((245, 240, 225), any_color(rng)))), rng.uniform(0, 1.57)
    for quarter in range(4):
        _sail(brush, turn + quarter * 1.5708, sail)


def _sail(brush: Brush, angle: float, paint: Paint) -> None:
    along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))

    def at(length: float, side: float) -> tuple[float, float]:
        return along[0] * length + across[0] * side, 0.68 + along[1] * length + across[1] * side

    brush.line([at(0, 0), at(0.46, 0)], 0.035, paint.darker(0.4))
    brush.polygon([at(0.12, 0), at(0.46, 0), at(0.46, 0.12), at(0.12, 0.09)], paint)


def _roof_paint(canvas: Canvas) -> Paint:
    rng = canvas.rng
    usual = hsv(rng.uniform(-15, 30), rng.uniform(0.4, 0.85), rng.uniform(0.3, 0.8))
    color = usual if rng.random() < 0.5 else any_color(rng)
    return Paint(color, rng.choice(("tiles", "tiles", "planks", "furrows")), rng.uniform(14, 28), 6)


def _roof(brush: Brush, half: float, eaves: float, top: float) -> None:
    rng, over = brush.canvas.rng, 0.09
    flat = rng.choice((0.0, 0.3, 0.6)) * half
    points = [(-half - over, eaves), (half + over, eaves), (flat, top), (-flat, top)]
    brush.polygon(points, _roof_paint(brush.canvas), "roof")


def _glass(canvas: Canvas) -> Paint:
    rng = canvas.rng
    return Paint(rng.choice(((255, 235, 150), (150, 200, 230), (60, 75, 95), (205, 230, 240), (40, 40, 50))))


def _pane(brush: Brush, u0: float, v0: float, u1: float, v1: float, glass: Paint) -> None:
    frame = Paint((245, 245, 240)) if sum(glass.color) < 560 else Paint((90, 60, 40))
    brush.box(u0, v0, u1, v1, frame, "window")
    rim, middle = 0.025, (u0 + u1) / 2
    brush.box(u0 + rim, v0 + rim, middle - rim / 2, v1 - rim, glass, "window")
    brush.box(middle + rim / 2, v0 + rim, u1 - rim, v1 - rim, glass, "window")
