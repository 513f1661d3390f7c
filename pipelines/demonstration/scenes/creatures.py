"""Animals and people of the scenes: birds, cats, dogs, horses, cows, sheep, persons and their umbrellas."""

import math

from pipelines.demonstration.scenes.canvas import Brush, Canvas, Color, Paint, any_color, hsv

_EYE = Paint((20, 20, 20))


def _coat(canvas: Canvas) -> Color:
    """Draw a fur color that cats, dogs, horses, cows and birds share."""
    rng = canvas.rng
    return rng.choice(
        (
            hsv(rng.uniform(15, 38), rng.uniform(0.35, 0.8), rng.uniform(0.25, 0.75)),
            hsv(30, rng.uniform(0, 0.15), rng.uniform(0.15, 0.45)),
            hsv(40, rng.uniform(0, 0.25), rng.uniform(0.75, 0.97)),
            hsv(220, rng.uniform(0, 0.15), rng.uniform(0.4, 0.7)),
        )
    )


def _legs(brush: Brush, positions: tuple[float, ...], top: float, width: float, paint: Paint) -> None:
    rng = brush.canvas.rng
    for index, u in enumerate(positions):
        step = rng.uniform(-0.07, 0.07)
        shade = paint.darker(0.8) if index % 2 else paint
        brush.polygon([(u, top), (u + width, top), (u + width + step, 0), (u + step, 0)], shade)


def draw_horse(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a horse: long legs, a raised neck with a mane, a hanging tail."""
    rng, brush = canvas.rng, Brush(canvas, "horse", x, y, height)
    coat = Paint(_coat(canvas), "soft", 12, 10)
    mane = Paint(rng.choice(((30, 25, 20), (235, 220, 180), coat.darker(0.55).color)))
    _legs(brush, (-0.36, -0.24, 0.2, 0.32), 0.46, 0.09, coat)
    brush.disc(0, 0.54, 0.46, 0.17, coat)
    brush.polygon([(0.2, 0.55), (0.44, 0.5), (0.66, 0.86), (0.5, 0.93)], coat)
    brush.polygon([(0.48, 0.97), (0.62, 0.94), (0.88, 0.72), (0.82, 0.65), (0.56, 0.76)], coat)
    brush.polygon([(0.5, 0.93), (0.53, 1.04), (0.59, 0.94)], coat)
    brush.polygon([(0.16, 0.66), (0.44, 0.98), (0.53, 0.96), (0.3, 0.62)], mane)
    brush.polygon([(-0.44, 0.62), (-0.6, 0.3), (-0.5, 0.22), (-0.4, 0.55)], mane)
    brush.disc(0.64, 0.84, 0.025, 0.025, _EYE)


def draw_cow(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a cow: a boxy patched body, horns, an udder."""
    rng, brush = canvas.rng, Brush(canvas, "cow", x, y, height * 0.9)
    pattern = "spots" if rng.random() < 0.7 else "soft"
    base = _coat(canvas)
    if pattern == "spots" and sum(base) < 300:
        base = hsv(30, 0.1, 0.7)
    coat = Paint(base, pattern, 75 if pattern == "spots" else 12)
    plain = Paint(base)
    _legs(brush, (-0.5, -0.36, 0.3, 0.44), 0.4, 0.12, plain.darker(0.9))
    brush.disc(-0.25, 0.32, 0.12, 0.1, Paint((235, 170, 170)))
    brush.polygon([(-0.58, 0.34), (0.5, 0.32), (0.6, 0.6), (0.5, 0.8), (-0.52, 0.8), (-0.62, 0.65)], coat)
    brush.polygon([(0.48, 0.86), (0.78, 0.86), (0.88, 0.55), (0.72, 0.48), (0.54, 0.56)], plain.darker(0.92))
    brush.disc(0.8, 0.54, 0.1, 0.07, Paint((235, 180, 170)))
    horn = Paint((235, 230, 210))
    for u in (0.52, 0.76):
        brush.polygon([(u - 0.05, 0.84), (u + 0.05, 0.84), (u + (0.1 if u > 0.6 else -0.1), 1.0)], horn)
    brush.line([(-0.6, 0.74), (-0.7, 0.55), (-0.68, 0.35)], 0.045, plain.darker(0.7))
    brush.disc(0.7, 0.74, 0.03, 0.03, _EYE)


def draw_sheep(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a sheep: a ball of wool on short legs."""
    rng, brush = canvas.rng, Brush(canvas, "sheep", x, y, height * 0.75)
    color = rng.choice((hsv(45, 0.08, 0.93), hsv(40, 0.2, 0.85), hsv(30, 0.1, 0.3), hsv(30, 0.35, 0.6)))
    wool, face = (
        Paint(color, "wool", 22, 8),
        Paint(rng.choice(((40, 38, 38), (225, 205, 185), (110, 90, 80)))),
    )
    _legs(brush, (-0.38, -0.22, 0.16, 0.32), 0.32, 0.09, face.darker(0.9))
    brush.disc(0, 0.55, 0.56, 0.35, wool, bumps=rng.choice((9, 11, 13)))
    brush.disc(0.6, 0.66, 0.19, 0.17, face)
    brush.disc(0.5, 0.82, 0.17, 0.11, wool, bumps=7)
    brush.polygon([(0.44, 0.7), (0.3, 0.6), (0.46, 0.6)], face.darker(0.8))
    brush.disc(0.66, 0.7, 0.03, 0.03, _EYE if sum(face.color) > 200 else Paint((240, 240, 240)))


def draw_dog(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a dog: a snout, hanging ears and a raised tail."""
    rng, brush = canvas.rng, Brush(canvas, "dog", x, y, height * 0.75)
    coat = Paint(_coat(canvas), rng.choice(("soft", "fine", "spots")), rng.choice((10, 30)), 8)
    ear = coat.darker(rng.choice((0.55, 0.7)))
    _legs(brush, (-0.44, -0.3, 0.2, 0.32), 0.4, 0.11, Paint(coat.color))
    brush.disc(-0.05, 0.48, 0.46, 0.19, coat)
    brush.polygon([(-0.46, 0.52), (-0.62, 0.9), (-0.54, 0.93), (-0.36, 0.6)], coat)
    brush.polygon([(0.2, 0.5), (0.4, 0.45), (0.52, 0.75), (0.3, 0.8)], coat)
    brush.disc(0.46, 0.8, 0.2, 0.19, coat)
    brush.box(0.5, 0.67, 0.82, 0.82, Paint(coat.color))
    brush.disc(0.82, 0.8, 0.06, 0.05, _EYE)
    brush.polygon([(0.28, 0.92), (0.42, 0.9), (0.38, 0.55), (0.26, 0.6)], ear)
    brush.disc(0.54, 0.86, 0.03, 0.03, _EYE)
    if rng.random() < 0.4:
        brush.box(0.24, 0.6, 0.48, 0.66, Paint(any_color(rng)))


def draw_cat(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a sitting cat: a round head with pointed ears, a tail around the body."""
    rng, brush = canvas.rng, Brush(canvas, "cat", x, y, height * 0.75)
    coat = Paint(_coat(canvas), rng.choice(("soft", "furrows", "fine")), rng.choice((8, 20)), 8)
    brush.line(
        [(-0.25, 0.06), (-0.55, 0.1), (-0.62, 0.35), (-0.5, 0.55)], 0.11, Paint(coat.color).darker(0.9)
    )
    brush.polygon([(-0.34, 0), (0.3, 0), (0.26, 0.3), (0.14, 0.62), (-0.16, 0.62), (-0.32, 0.3)], coat)
    brush.disc(0.02, 0.74, 0.27, 0.23, coat)
    for side in (-1, 1):
        brush.polygon(
            [(0.02 + side * 0.27, 0.78), (0.02 + side * 0.24, 1.08), (0.02 + side * 0.06, 0.93)], coat
        )
        brush.disc(0.02 + side * 0.1, 0.77, 0.045, 0.05, Paint((120, 200, 90)))
        brush.disc(0.02 + side * 0.1, 0.77, 0.02, 0.045, _EYE)
    brush.polygon([(-0.02, 0.7), (0.06, 0.7), (0.02, 0.65)], Paint((230, 150, 150)))
    if rng.random() < 0.6:
        brush.disc(0.02, 0.35, 0.12, 0.2, Paint(coat.color).darker(1.3))


def draw_bird(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a bird, flying with spread wings or standing."""
    rng, brush = canvas.rng, Brush(canvas, "bird", x, y, height * 0.6)
    plumage = Paint(rng.choice((_coat(canvas), any_color(rng))), "soft", 8)
    beak = Paint((240, 170, 40))
    if rng.random() < 0.55:
        lift = rng.uniform(0.2, 0.5)
        for side in (-1, 1):
            brush.polygon(
                [
                    (side * 0.05, 0.55),
                    (side * 0.45, 0.6 + lift),
                    (side * 0.95, 0.45 + lift * 0.7),
                    (side * 0.45, 0.42 + lift * 0.6),
                    (side * 0.08, 0.38),
                ],
                plumage.darker(0.85),
            )
        brush.disc(0, 0.45, 0.2, 0.14, plumage)
        brush.disc(0.2, 0.54, 0.11, 0.1, plumage)
        brush.polygon([(0.29, 0.58), (0.44, 0.52), (0.29, 0.5)], beak)
        return
    for u in (-0.08, 0.08):
        brush.line([(u, 0.0), (u, 0.3)], 0.05, beak)
    brush.polygon([(-0.25, 0.5), (-0.7, 0.4), (-0.65, 0.6)], plumage.darker(0.7))
    brush.disc(0, 0.5, 0.4, 0.27, plumage)
    brush.disc(0.32, 0.78, 0.2, 0.19, plumage)
    brush.polygon([(0.5, 0.84), (0.74, 0.76), (0.5, 0.7)], beak)
    brush.disc(-0.08, 0.5, 0.22, 0.14, plumage.darker(0.7))
    brush.disc(0.38, 0.82, 0.035, 0.035, _EYE)


def draw_person(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a standing or walking person in any clothes, sometimes holding an umbrella."""
    rng, brush = canvas.rng, Brush(canvas, "person", x, y, height)
    skin = Paint(hsv(rng.uniform(15, 30), rng.uniform(0.25, 0.6), rng.uniform(0.35, 0.95)))
    top, bottom = Paint(any_color(rng), "soft", 8, 8), Paint(any_color(rng), "soft", 8)
    hair = Paint(rng.choice(((40, 28, 20), (120, 75, 35), (225, 195, 110), (150, 150, 150), (170, 70, 40))))
    stride = rng.uniform(0.04, 0.13)
    if rng.random() < 0.65:
        brush.polygon([(-0.11, 0.46), (0.02, 0.46), (-stride + 0.05, 0), (-stride - 0.08, 0)], bottom)
        brush.polygon(
            [(-0.02, 0.46), (0.11, 0.46), (stride + 0.08, 0), (stride - 0.05, 0)], bottom.darker(0.85)
        )
    else:
        _legs(brush, (-0.08, 0.02), 0.3, 0.06, skin)
        brush.polygon([(-0.1, 0.48), (0.1, 0.48), (0.21, 0.17), (-0.21, 0.17)], bottom)
    raised = rng.uniform(-0.2, 0.25)
    for side in (-1, 1):
        hand = (side * 0.27, 0.5 + (raised if side > 0 else -0.05))
        brush.line([(side * 0.12, 0.74), hand], 0.075, top.darker(0.85))
        brush.disc(hand[0], hand[1], 0.045, 0.045, skin)
    brush.polygon([(-0.15, 0.78), (0.15, 0.78), (0.12, 0.44), (-0.12, 0.44)], top)
    brush.disc(0, 0.88, 0.11, 0.12, hair)
    brush.disc(0.02, 0.87, 0.09, 0.1, skin)
    if rng.random() < 0.3:
        brush.polygon([(-0.18, 0.94), (0.18, 0.94), (0.08, 1.06), (-0.08, 1.06)], Paint(any_color(rng)))


def draw_umbrella(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw an open parasol on a pole that stands in the ground."""
    rng, brush = canvas.rng, Brush(canvas, "umbrella", x, y, height * 0.95)
    cloth = (Paint(any_color(rng), None, 0, 10), Paint(any_color(rng), None, 0, 10))
    brush.line([(0, 0), (0, 0.7)], 0.045, Paint((120, 90, 60)))
    reach, gores = rng.uniform(0.45, 0.65), rng.choice((4, 5, 6))
    for gore in range(gores):
        left, right = (-1 + 2 * gore / gores), (-1 + 2 * (gore + 1) / gores)
        rim = [(reach * left, 0.6), (reach * right, 0.6)]
        arc = [
            (reach * 0.8 * side, 0.6 + 0.4 * math.sqrt(max(0.0, 1 - 0.95 * side * side)) * 0.75)
            for side in (right, left)
        ]
        brush.polygon([*rim, arc[0], (0, 1), arc[1]], cloth[gore % 2])
