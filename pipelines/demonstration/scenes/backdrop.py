"""The ground and the far view of a scene: sky, mountains, hills, sea, land, fields, rivers, lakes, roads."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipelines.demonstration.scenes.canvas import Canvas, Color, Paint, Point, hsv
from pipelines.demonstration.words import CLASS_INDEX

LANDS = ("grass", "field", "sand", "snow")


def wavy(canvas: Canvas, y: float, swing: float) -> list[Point]:
    """Return points of a wavy line at height `y` across the picture, left to right."""
    rng, size = canvas.rng, canvas.size
    phase, waves = rng.uniform(0, 6), rng.uniform(0.5, 2.5)
    return [
        (size * step / 16, y + swing * size * math.sin(phase + waves * math.pi * step / 8))
        for step in range(-1, 18)
    ]


def fill_below(canvas: Canvas, edge: Sequence[Point], name: str, paint: Paint) -> None:
    """Fill everything below a line that runs from left to right."""
    size = canvas.size
    canvas.polygon([*edge, (size * 1.1, size + 2), (-size * 0.1, size + 2)], name, paint)


def paint_sky(canvas: Canvas, night: bool) -> None:
    """Fill the picture with a sky that fades from top to bottom: blue, gray, evening or night."""
    rng = canvas.rng
    kind = "night" if night else rng.choice(("blue", "blue", "gray", "evening", "pale"))
    top, bottom = {
        "night": (
            hsv(rng.uniform(215, 270), 0.7, rng.uniform(0.08, 0.25)),
            hsv(rng.uniform(210, 280), 0.6, rng.uniform(0.2, 0.4)),
        ),
        "blue": (
            hsv(rng.uniform(195, 225), rng.uniform(0.5, 0.8), rng.uniform(0.7, 0.95)),
            hsv(205, rng.uniform(0.1, 0.4), 0.97),
        ),
        "gray": (
            hsv(220, rng.uniform(0, 0.15), rng.uniform(0.5, 0.75)),
            hsv(220, 0.05, rng.uniform(0.7, 0.9)),
        ),
        "evening": (
            hsv(rng.uniform(200, 300), 0.45, rng.uniform(0.5, 0.8)),
            hsv(rng.uniform(5, 45), rng.uniform(0.35, 0.7), 0.97),
        ),
        "pale": (hsv(rng.uniform(40, 200), 0.12, 0.93), hsv(rng.uniform(20, 200), 0.2, 0.98)),
    }[kind]
    ramp = np.linspace(0, 1, canvas.size, dtype=np.float32)[:, None, None]
    column = (1 - ramp) * np.asarray(top, np.float32) + ramp * np.asarray(bottom, np.float32)
    canvas.image.paste(Image.fromarray(column.astype(np.uint8)).resize((canvas.size, canvas.size)))
    canvas.labels.paste(CLASS_INDEX["sky"], (0, 0, canvas.size, canvas.size))


def water_paint(canvas: Canvas) -> Paint:
    """Draw the paint of a body of water; sea, river and lake share it, so only shape and place tell them apart."""
    rng = canvas.rng
    color = rng.choice(
        (
            hsv(rng.uniform(190, 225), rng.uniform(0.4, 0.85), rng.uniform(0.35, 0.9)),
            hsv(rng.uniform(165, 195), rng.uniform(0.3, 0.7), rng.uniform(0.4, 0.8)),
            hsv(215, rng.uniform(0.05, 0.3), rng.uniform(0.35, 0.75)),
        )
    )
    return Paint(color, rng.choice(("waves", "ripples", "ripples")), rng.uniform(8, 20), rng.uniform(0, 12))


def land_paint(canvas: Canvas, name: str) -> Paint:
    """Draw the paint of a kind of land; the palettes overlap, the textures mostly differ."""
    rng = canvas.rng
    amplitude = rng.uniform(9, 22)
    if name == "grass":
        hue, value = (
            (rng.uniform(75, 135), rng.uniform(0.4, 0.8))
            if rng.random() < 0.75
            else (rng.uniform(35, 70), rng.uniform(0.5, 0.8))
        )
        return Paint(hsv(hue, rng.uniform(0.35, 0.75), value), "blades", amplitude)
    if name == "field":
        hue = rng.choice((rng.uniform(35, 60), rng.uniform(70, 120), rng.uniform(18, 35)))
        return Paint(
            hsv(hue, rng.uniform(0.35, 0.8), rng.uniform(0.4, 0.9)),
            rng.choice(("furrows", "rows")),
            amplitude + 8,
        )
    if name == "sand":
        return Paint(
            hsv(rng.uniform(25, 52), rng.uniform(0.15, 0.55), rng.uniform(0.7, 0.97)), "speckle", amplitude
        )
    return Paint(
        hsv(rng.uniform(190, 260), rng.uniform(0, 0.1), rng.uniform(0.85, 1)), "soft", amplitude * 0.7
    )


def paint_mountains(canvas: Canvas, horizon: float) -> None:
    """Draw one to three peaks behind the horizon, often with snow on top."""
    rng, size = canvas.rng, canvas.size
    hue = rng.choice((rng.uniform(200, 270), rng.uniform(15, 40), rng.uniform(90, 140)))
    stone = Paint(hsv(hue, rng.uniform(0.05, 0.4), rng.uniform(0.3, 0.7)), "cracks", rng.uniform(10, 25), 10)
    snowy = rng.random() < 0.55
    for _ in range(rng.randint(1, 3)):
        x, peak = rng.uniform(0, size), horizon - rng.uniform(0.15, 0.38) * size
        left, right, base = (
            x - rng.uniform(0.2, 0.5) * size,
            x + rng.uniform(0.2, 0.5) * size,
            horizon + 0.06 * size,
        )
        canvas.polygon([(left, base), (x, peak), (right, base)], "mountain", stone)
        if snowy:
            part = rng.uniform(0.25, 0.45)
            at = [
                (x + (left - x) * part, peak + (base - peak) * part),
                (x, peak),
                (x + (right - x) * part, peak + (base - peak) * part),
            ]
            step = (at[2][0] - at[0][0]) / 5
            zigzag = [(at[2][0] - step * i, at[2][1] + (-1) ** i * 0.02 * size) for i in range(1, 5)]
            canvas.polygon([*at, *zigzag], "snow", land_paint(canvas, "snow"))


def paint_hills(canvas: Canvas, horizon: float) -> None:
    """Draw rounded hills on the horizon in the colors of grass and fields."""
    rng, size = canvas.rng, canvas.size
    for _ in range(rng.randint(1, 3)):
        x, reach, rise = rng.uniform(0, size), rng.uniform(0.25, 0.55) * size, rng.uniform(0.08, 0.22) * size
        paint = land_paint(canvas, "grass")
        paint = Paint(paint.color, rng.choice(("soft", "blobs")), rng.uniform(8, 16), 8)
        arc = [
            (
                x - reach * math.cos(math.pi * step / 16),
                horizon + 0.04 * size - rise * math.sin(math.pi * step / 16),
            )
            for step in range(17)
        ]
        canvas.polygon(arc, "hill", paint)


def paint_river(canvas: Canvas, horizon: float) -> None:
    """Draw a winding band of water: towards the viewer, or across the picture."""
    rng, size = canvas.rng, canvas.size
    swing, phase, wide = rng.uniform(0.05, 0.16), rng.uniform(0, 6), rng.uniform(0.1, 0.24) * size
    left: list[Point] = []
    right: list[Point] = []
    if rng.random() < 0.5:
        start, end = rng.uniform(0.2, 0.8) * size, rng.uniform(0.0, 1.0) * size
        for step in range(15):
            t = step / 14
            x = start + (end - start) * t + swing * size * math.sin(phase + 5 * t)
            half = wide * (0.12 + 0.88 * t) * 0.75
            y = horizon + (size + 4 - horizon) * t
            left.append((x - half, y))
            right.append((x + half, y))
    else:
        middle = horizon + rng.uniform(0.25, 0.7) * (size - horizon)
        for x, y in wavy(canvas, middle, swing * 0.5):
            left.append((x, y - wide * 0.42))
            right.append((x, y + wide * 0.42))
    canvas.polygon([*left, *reversed(right)], "river", water_paint(canvas))


def paint_lake(canvas: Canvas, horizon: float) -> None:
    """Draw a closed, rounded body of water in the land."""
    rng, size = canvas.rng, canvas.size
    x, y = rng.uniform(0.2, 0.8) * size, horizon + rng.uniform(0.25, 0.7) * (size - horizon)
    reach, depth, phase = rng.uniform(0.22, 0.45) * size, rng.uniform(0.1, 0.19) * size, rng.uniform(0, 6)
    shore = []
    for step in range(32):
        angle = 2 * math.pi * step / 32
        swell = 1 + 0.12 * math.sin(2 * angle + phase) + 0.07 * math.sin(3 * angle - phase)
        shore.append(
            (x + swell * reach * math.cos(angle), max(y + swell * depth * math.sin(angle), horizon + 3))
        )
    canvas.polygon(shore, "lake", water_paint(canvas))


def paint_road(canvas: Canvas, horizon: float) -> None:
    """Draw a road: towards the viewer, or across the picture; asphalt or earth."""
    rng, size = canvas.rng, canvas.size
    dark = rng.random() < 0.6
    color: Color = (
        hsv(220, 0.08, rng.uniform(0.25, 0.55))
        if dark
        else hsv(rng.uniform(20, 45), rng.uniform(0.2, 0.5), rng.uniform(0.5, 0.8))
    )
    paint, line = (
        Paint(color, "fine", rng.uniform(8, 16)),
        Paint(rng.choice(((245, 245, 240), (240, 200, 60)))),
    )
    marked = dark and rng.random() < 0.75
    if rng.random() < 0.45:
        top, foot = rng.uniform(0.25, 0.75) * size, rng.uniform(0.1, 0.9) * size
        half = rng.uniform(0.1, 0.22) * size
        canvas.polygon(
            [
                (top - half * 0.12, horizon),
                (top + half * 0.12, horizon),
                (foot + half, size + 2),
                (foot - half, size + 2),
            ],
            "road",
            paint,
        )
        for step in range(2, 9, 2) if marked else ():
            a, b = (step / 9) ** 1.5, ((step + 1) / 9) ** 1.5
            at = [(top + (foot - top) * t, horizon + (size - horizon) * t) for t in (a, b)]
            canvas.line(at, half * 0.12 * b, "road", line)
        return
    edge = wavy(canvas, horizon + rng.uniform(0.2, 0.75) * (size - horizon), rng.uniform(0, 0.02))
    depth = rng.uniform(0.1, 0.2) * size
    canvas.polygon([*edge, *[(x, y + depth) for x, y in reversed(edge)]], "road", paint)
    for (x, y), (x2, y2) in list(itertools.pairwise(edge))[::2] if marked else ():
        canvas.line([(x, y + depth / 2), (x2, y2 + depth / 2)], depth * 0.08, "road", line)
