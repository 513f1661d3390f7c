"""Plants, rocks and what hangs in the sky: trees, bushes, flowers, rocks, clouds, sun, moon."""

import math

from pipelines.demonstration.scenes.canvas import Brush, Canvas, Color, Paint, any_color, hsv


def foliage(canvas: Canvas) -> Color:
    """Draw a leaf color: mostly greens, some autumn, blossom and snow-dusted ones; shared by trees and bushes."""
    rng = canvas.rng
    kind = rng.random()
    if kind < 0.65:
        return hsv(rng.uniform(70, 150), rng.uniform(0.35, 0.85), rng.uniform(0.25, 0.7))
    if kind < 0.88:
        return hsv(rng.uniform(10, 50), rng.uniform(0.5, 0.9), rng.uniform(0.45, 0.85))
    return hsv(rng.uniform(300, 350), rng.uniform(0.15, 0.5), rng.uniform(0.7, 0.95))


def draw_tree(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a tree: a trunk under a round, a tall or a fir crown."""
    rng, brush = canvas.rng, Brush(canvas, "tree", x, y, height * 1.2)
    bark = Paint(hsv(rng.uniform(15, 40), rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.6)), "planks", 14)
    leaves = Paint(foliage(canvas), "leaves", rng.uniform(14, 30), rng.uniform(6, 18))
    crown, girth = rng.uniform(0.2, 0.4), rng.uniform(0.035, 0.065)
    brush.box(-girth, 0, girth, crown + 0.15, bark)
    kind = rng.random()
    if kind < 0.35:
        levels, width = rng.randint(2, 4), rng.uniform(0.22, 0.34)
        for level in range(levels):
            low = 0.16 + (0.8 - 0.16) * level / levels
            reach = width * (1 - 0.6 * level / levels)
            brush.polygon([(-reach, low), (reach, low), (0, min(1.0, low + 0.45))], leaves)
        return
    middle, wide = (1 + crown) / 2, rng.uniform(0.22, 0.42)
    brush.disc(
        0, middle, wide if kind < 0.8 else wide * 0.6, (1 - crown) / 2, leaves, bumps=rng.choice((5, 6, 7, 8))
    )
    if kind < 0.6:
        for side in (-0.7, 0.7):
            brush.disc(side * wide, middle - 0.1, wide * 0.55, 0.19, leaves, bumps=5)


def draw_bush(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a bush: leaves down to the ground, no trunk, sometimes berries."""
    rng, brush = canvas.rng, Brush(canvas, "bush", x, y, height * 0.75)
    leaves = Paint(foliage(canvas), "leaves", rng.uniform(14, 30), rng.uniform(6, 16))
    for _ in range(rng.randint(2, 4)):
        u = rng.uniform(-0.45, 0.45)
        brush.disc(
            u, 0.4, rng.uniform(0.35, 0.55), rng.uniform(0.35, 0.55), leaves, bumps=rng.choice((6, 7, 9))
        )
    brush.box(-0.6, 0, 0.6, 0.22, leaves)
    if rng.random() < 0.3:
        berry = Paint(any_color(rng))
        for _ in range(8):
            brush.disc(rng.uniform(-0.5, 0.5), rng.uniform(0.1, 0.7), 0.045, 0.045, berry)


def draw_flower(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a clump of large picture-book flowers on stalks."""
    rng = canvas.rng
    petals, heart = Paint(any_color(rng)), Paint(rng.choice(((250, 210, 60), (90, 60, 30), (250, 250, 240))))
    stalk = Paint(hsv(rng.uniform(80, 140), 0.7, rng.uniform(0.3, 0.6)))
    count = rng.choice((1, 2, 3, 5))
    for _ in range(count):
        brush = Brush(
            canvas,
            "flower",
            x + rng.uniform(-0.6, 0.6) * height * (count > 1),
            y + rng.uniform(-3, 3),
            height,
        )
        brush.line([(0, 0), (0, 0.7)], 0.07, stalk)
        brush.polygon([(0, 0.1), (0.3, 0.4), (0.05, 0.32)], stalk)
        radius, number, turn = rng.uniform(0.2, 0.27), rng.choice((5, 6, 8)), rng.uniform(0, 3)
        for petal in range(number):
            angle = turn + 2 * math.pi * petal / number
            brush.disc(
                radius * math.cos(angle), 0.7 + radius * math.sin(angle), radius * 0.6, radius * 0.6, petals
            )
        brush.disc(0, 0.7, radius * 0.6, radius * 0.6, heart)


def draw_rock(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a jagged boulder."""
    rng, brush = canvas.rng, Brush(canvas, "rock", x, y, height * 0.7)
    stone = Paint(
        hsv(rng.uniform(0, 260), rng.uniform(0, 0.18), rng.uniform(0.3, 0.75)),
        "cracks",
        rng.uniform(18, 35),
        20,
    )
    count, wide = rng.randint(6, 9), rng.uniform(0.55, 1.0)
    outline = []
    for corner in range(count):
        angle = math.pi * corner / (count - 1)
        reach = rng.uniform(0.8, 1.05)
        outline.append((wide * reach * math.cos(angle), reach * math.sin(angle)))
    brush.polygon(outline, stone)
    brush.polygon([outline[1], outline[2], (0, 0.25)], stone.darker(1.15))


def draw_cloud(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a cloud of several puffs: white, gray, or colored by the evening."""
    rng, brush = canvas.rng, Brush(canvas, "cloud", x, y, height)
    value = rng.uniform(0.55, 1.0)
    puff = Paint(hsv(rng.uniform(0, 360), rng.uniform(0, 0.18), value), "soft", 14)
    half = rng.uniform(0.7, 1.5)
    for _ in range(rng.randint(3, 6)):
        brush.disc(
            rng.uniform(-half, half),
            rng.uniform(0.35, 0.6),
            rng.uniform(0.4, 0.7),
            rng.uniform(0.3, 0.5),
            puff,
        )
    brush.disc(0, 0.3, half * 1.1, 0.28, puff)


def draw_sun(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw the sun, with rays or without."""
    rng, brush = canvas.rng, Brush(canvas, "sun", x, y, height)
    glow = Paint(rng.choice(((255, 225, 70), (255, 245, 170), (250, 150, 50), (240, 90, 60))))
    if rng.random() < 0.6:
        number = rng.choice((8, 10, 12))
        for ray in range(number):
            angle = 2 * math.pi * ray / number
            tip = (0.62 * math.cos(angle), 0.5 + 0.62 * math.sin(angle))
            base = [
                (0.4 * math.cos(angle + turn), 0.5 + 0.4 * math.sin(angle + turn)) for turn in (-0.16, 0.16)
            ]
            brush.polygon([base[0], tip, base[1]], glow)
    brush.disc(0, 0.5, 0.42, 0.42, glow)


def draw_moon(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a full moon with craters, or a crescent."""
    rng, brush = canvas.rng, Brush(canvas, "moon", x, y, height)
    pale = Paint(hsv(rng.uniform(35, 70), rng.uniform(0.02, 0.35), rng.uniform(0.8, 1)))
    if rng.random() < 0.5:
        brush.disc(0, 0.5, 0.45, 0.45, pale)
        for _ in range(4):
            brush.disc(rng.uniform(-0.22, 0.22), rng.uniform(0.3, 0.7), 0.08, 0.08, pale.darker(0.82))
        return
    outer = [
        (0.5 * math.cos(a), 0.5 + 0.5 * math.sin(a))
        for a in (math.pi * (0.35 + 1.3 * i / 16) for i in range(17))
    ]
    inner = [
        (0.22 + 0.42 * math.cos(a), 0.5 + 0.42 * math.sin(a))
        for a in (math.pi * (1.6 - 1.2 * i / 16) for i in range(17))
    ]
    brush.polygon([*outer, *inner], pale)
