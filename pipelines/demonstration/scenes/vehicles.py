"""Vehicles of the scenes: cars, buses, trucks, boats, trains, aeroplanes, balloons."""

import math

from pipelines.demonstration.scenes.canvas import Brush, Canvas, Paint, any_color

_TYRE, _HUB = Paint((35, 35, 38)), Paint((170, 170, 175))


def _glass(canvas: Canvas) -> Paint:
    return Paint(canvas.rng.choice(((175, 210, 230), (60, 80, 100), (220, 235, 240), (250, 235, 160))))


def _wheel(brush: Brush, u: float, radius: float) -> None:
    brush.disc(u, radius * 0.9, radius, radius, _TYRE)
    brush.disc(u, radius * 0.9, radius * 0.45, radius * 0.45, _HUB)


def _body(canvas: Canvas) -> Paint:
    return Paint(any_color(canvas.rng), "soft", 8, canvas.rng.uniform(5, 18))


def draw_car(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a car from the side; its windows and wheels belong to it."""
    rng, brush = canvas.rng, Brush(canvas, "car", x, y, height * 0.62)
    body, glass, half = _body(canvas), _glass(canvas), rng.uniform(0.95, 1.25)
    roof = rng.uniform(0.3, 0.55) * half
    brush.polygon([(-half * 0.75, 0.55), (-roof, 1), (roof * 0.8, 1), (half * 0.55, 0.55)], body)
    brush.polygon([(-half * 0.6, 0.58), (-roof * 0.9, 0.93), (-0.04, 0.93), (-0.04, 0.58)], glass)
    brush.polygon([(0.04, 0.58), (0.04, 0.93), (roof * 0.75, 0.93), (half * 0.42, 0.58)], glass)
    brush.polygon(
        [(-half, 0.18), (half, 0.18), (half, 0.48), (half * 0.55, 0.58), (-half * 0.95, 0.58)], body
    )
    brush.box(half - 0.12, 0.36, half, 0.46, Paint((255, 240, 150)))
    for u in (-half * 0.6, half * 0.6):
        _wheel(brush, u, 0.22)


def draw_bus(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a long bus with a row of windows, sometimes with two decks."""
    rng, brush = canvas.rng, Brush(canvas, "bus", x, y, height * 0.95)
    body, glass, half = _body(canvas), _glass(canvas), rng.uniform(0.9, 1.3)
    brush.box(-half, 0.1, half, 1, body)
    decks = ((0.5, 0.85),) if rng.random() < 0.6 else ((0.62, 0.9), (0.3, 0.52))
    number = rng.randint(4, 6)
    for low, high in decks:
        for index in range(number):
            u = -half + 0.08 + index * (2 * half - 0.1) / number
            brush.box(u, low, u + (2 * half - 0.1) / number - 0.07, high, glass)
    if len(decks) == 1:
        brush.box(-half, 0.34, half, 0.42, body.darker(rng.choice((0.6, 1.5))))
    for u in (-half * 0.62, half * 0.62):
        _wheel(brush, u, 0.15)


def draw_truck(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a lorry: a cab in front of a box, a tank or an open bed."""
    rng, brush = canvas.rng, Brush(canvas, "truck", x, y, height * 0.9)
    cab, load, half = _body(canvas), _body(canvas), rng.uniform(0.9, 1.15)
    brush.box(-half, 0.13, half, 0.26, Paint((60, 60, 65)))
    kind = rng.random()
    if kind < 0.5:
        brush.box(
            -half, 0.26, half * 0.42, 1, Paint(load.color, rng.choice(("furrows", "soft", "planks")), 12)
        )
    elif kind < 0.75:
        brush.disc(-half * 0.3, 0.58, half * 0.72, 0.32, load)
    else:
        brush.box(-half, 0.26, half * 0.42, 0.6, load)
        brush.disc(-half * 0.3, 0.58, half * 0.6, 0.2, Paint((120, 90, 60), "leaves", 20))
    brush.polygon([(half * 0.48, 0.2), (half, 0.2), (half, 0.5), (half * 0.88, 0.8), (half * 0.48, 0.8)], cab)
    brush.polygon(
        [(half * 0.62, 0.48), (half * 0.95, 0.48), (half * 0.85, 0.74), (half * 0.62, 0.74)], _glass(canvas)
    )
    for u in (-half * 0.75, -half * 0.4, half * 0.7):
        _wheel(brush, u, 0.17)


def draw_boat(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a sailing boat or a steamer."""
    rng, brush = canvas.rng, Brush(canvas, "boat", x, y, height)
    hull, half = _body(canvas), rng.uniform(0.5, 0.75)
    brush.polygon([(-half, 0.28), (half * 1.1, 0.32), (half * 0.75, 0), (-half * 0.75, 0)], hull)
    brush.line([(-half, 0.28), (half * 1.1, 0.32)], 0.05, hull.darker(1.4))
    if rng.random() < 0.65:
        sail = Paint(rng.choice(((245, 242, 230), any_color(rng))), "soft", 8, 8)
        brush.box(-0.03, 0.28, 0.03, 1.05, Paint((100, 75, 50)))
        brush.polygon([(0.06, 0.36), (half * 0.9, 0.4), (0.06, 1.02)], sail)
        brush.polygon([(-0.06, 0.36), (-half * 0.75, 0.4), (-0.06, 0.92)], sail.darker(0.9))
        return
    brush.box(-half * 0.55, 0.28, half * 0.45, 0.58, Paint((240, 240, 235), "fine", 6))
    for u in (-0.3, -0.1, 0.1):
        brush.disc(u * half * 1.6, 0.44, 0.06, 0.06, Paint((60, 80, 100)))
    funnel = Paint(any_color(rng))
    brush.box(-0.12, 0.58, 0.08, 0.95, funnel)
    brush.box(-0.12, 0.82, 0.08, 0.95, funnel.darker(0.4))


def draw_train(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a locomotive with carriages, nearly as long as the picture; the rail belongs to it."""
    rng, brush = canvas.rng, Brush(canvas, "train", x, y, height * 0.75)
    brush.lean = 0.0
    engine, coach, glass = _body(canvas), _body(canvas), _glass(canvas)
    brush.box(-4.6, -0.05, 2.2, 0.04, Paint((80, 75, 75)))
    steam = rng.random() < 0.5
    if steam:
        brush.box(-0.9, 0.22, -0.2, 1.0, engine)
        brush.box(-0.75, 0.6, -0.35, 0.88, glass)
        brush.box(-0.2, 0.25, 0.8, 0.68, engine.darker(0.85))
        brush.polygon([(0.5, 0.68), (0.68, 0.68), (0.74, 1), (0.44, 1)], engine.darker(0.5))
        brush.polygon([(0.8, 0.22), (1.1, 0.05), (0.8, 0.05)], engine.darker(0.6))
    else:
        brush.polygon([(-0.9, 0.15), (1.2, 0.15), (1.15, 0.45), (0.7, 0.9), (-0.9, 0.9)], engine)
        brush.polygon([(0.55, 0.55), (1.0, 0.55), (0.7, 0.82), (0.55, 0.82)], glass)
        brush.box(-0.9, 0.3, 1.15, 0.38, engine.darker(0.5))
    for start in (-2.6, -4.35)[: rng.randint(1, 2)]:
        brush.box(start, 0.18, start + 1.6, 0.88, coach)
        for index in range(4):
            brush.box(start + 0.14 + index * 0.36, 0.5, start + 0.38 + index * 0.36, 0.76, glass)
        brush.box(start + 1.6, 0.25, start + 1.75, 0.32, _TYRE)
    for u in (-4.1, -3.1, -2.3, -1.3, -0.65, -0.1, 0.35, 0.75):
        brush.disc(u, 0.13, 0.15, 0.15, _TYRE)


def draw_aeroplane(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw an aeroplane from the side with wings, tail and portholes."""
    rng, brush = canvas.rng, Brush(canvas, "aeroplane", x, y, height * 0.9)
    hull = Paint(rng.choice(((240, 240, 242), any_color(rng), any_color(rng))), "soft", 6, 8)
    trim = Paint(any_color(rng))
    brush.lean = 0.0
    tilt = rng.uniform(-0.2, 0.3)

    def at(u: float, v: float) -> tuple[float, float]:
        return u * math.cos(tilt) - v * math.sin(tilt), 0.5 + u * math.sin(tilt) + v * math.cos(tilt)

    brush.polygon([at(-0.2, 0.05), at(-0.55, 0.5), at(-0.35, 0.5), at(0.3, 0.05)], hull.darker(0.7))
    body = [(-1.0, 0.12), (-0.6, 0.17), (0.7, 0.17), (1.0, 0.08), (1.1, -0.02), (0.9, -0.14), (-0.5, -0.14)]
    brush.polygon([at(u, v) for u, v in body], hull)
    brush.polygon([at(-1.0, 0.12), at(-1.15, 0.52), at(-0.9, 0.52), at(-0.6, 0.15)], trim)
    brush.polygon([at(0.25, -0.02), at(-0.45, -0.5), at(-0.15, -0.5), at(0.55, -0.02)], trim.darker(0.85))
    for index in range(6):
        u = -0.5 + index * 0.2
        brush.polygon(
            [at(u, 0.03), at(u + 0.09, 0.03), at(u + 0.09, 0.11), at(u, 0.11)], Paint((60, 80, 110))
        )


def draw_balloon(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Draw a hot-air balloon with colored gores and a basket."""
    rng, brush = canvas.rng, Brush(canvas, "balloon", x, y, height * 1.15)
    brush.lean = 0.0
    paints = (Paint(any_color(rng), "soft", 6, 10), Paint(any_color(rng), "soft", 6, 10))
    brush.polygon([(-0.3, 0.5), (0.3, 0.5), (0.07, 0.2), (-0.07, 0.2)], paints[0].darker(0.8))
    for index, reach in enumerate((0.36, 0.24, 0.1)):
        brush.disc(0, 0.65, reach, 0.35, paints[index % 2])
    basket = Paint((130, 90, 50), "planks", 10)
    for u in (-0.07, 0.07):
        brush.line([(u, 0.12), (u, 0.22)], 0.02, basket)
    brush.box(-0.09, 0, 0.09, 0.13, basket)
