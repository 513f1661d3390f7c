"""A canvas that paints a picture and its label map with the same strokes, so that labels are exact."""

import colorsys
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from pipelines.demonstration.words import CLASS_INDEX

TILE = 512
Point = tuple[float, float]
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Paint:
    """A color with a texture: `amplitude` gray levels of the tile `texture`, `shade` levels from left to right."""

    color: Color
    texture: str | None = None
    amplitude: float = 0.0
    shade: float = 0.0

    def darker(self, factor: float) -> "Paint":
        """Return the paint with its color scaled by `factor` (below 1 is darker)."""
        red, green, blue = (max(0, min(255, round(channel * factor))) for channel in self.color)
        return Paint((red, green, blue), self.texture, self.amplitude, self.shade)


def hsv(hue: float, saturation: float, value: float) -> Color:
    """Return an RGB color; hue in degrees, saturation and value in [0, 1] (clipped)."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return round(red * 255), round(green * 255), round(blue * 255)


def any_color(rng: random.Random) -> Color:
    """Draw any color but black."""
    return hsv(
        rng.uniform(0, 360), rng.choice((0.05, 0.4, 0.7, 0.9)) + rng.uniform(-0.05, 0.1), rng.uniform(0.35, 1)
    )


def _blobs(generator: np.random.Generator, cells: tuple[int, int]) -> np.ndarray:
    noise = (generator.random(cells) * 255).astype(np.uint8)
    grown = Image.fromarray(noise).resize((TILE, TILE), Image.Resampling.BICUBIC)
    return np.asarray(grown, np.float32) / 127.5 - 1


@lru_cache(maxsize=1)
def texture_tiles() -> dict[str, np.ndarray]:
    """Return the textures, float32 [512, 512] in about [-1, 1] each; the same in every process."""
    generator = np.random.default_rng(20240)
    y, x = np.mgrid[0:TILE, 0:TILE].astype(np.float32)
    fine, small = generator.normal(0, 0.45, (TILE, TILE)).astype(np.float32), _blobs(generator, (128, 128))
    medium, large = _blobs(generator, (48, 48)), _blobs(generator, (14, 14))
    mortar = ((y % 9 < 1.5) | ((x + 9 * (y // 9 % 2)) % 18 < 1.5)).astype(np.float32)
    wool = np.sin(x * 0.75 + 2 * medium) * np.sin(y * 0.75 + 2 * medium)
    tiles = {
        "fine": fine,
        "speckle": np.where(generator.random((TILE, TILE)) < 0.06, -1.6, 0.1) + 0.3 * fine,
        "blobs": 0.7 * medium + 0.5 * large,
        "leaves": 1.2 * small + 0.5 * medium,
        "blades": 0.9 * _blobs(generator, (64, 256)) + 0.3 * fine,
        "waves": np.sin(y * 0.45 + 2.5 * _blobs(generator, (40, 12))) * 0.8 + 0.2 * fine,
        "ripples": 1.2 * _blobs(generator, (110, 18)),
        "furrows": np.sin((y + 0.35 * x) * 0.55 + 0.6 * large),
        "rows": np.sin((x - 0.5 * y) * 0.42 + 0.6 * large) + 0.3 * fine,
        "planks": np.where(x % 8 < 1.3, -1.3, 0.25) + 0.4 * _blobs(generator, (12, 128)),
        "bricks": 0.2 - 1.3 * mortar + 0.2 * fine,
        "tiles": np.where((y % 7 < 1.4) | ((x + 4 * (y // 7 % 2)) % 8 < 1.2), -1.0, 0.25),
        "wool": wool,
        "cracks": np.clip(1 - 6 * np.abs(medium), -1, 1) * -0.8 + 0.5 * large,
        "spots": np.where(_blobs(generator, (30, 30)) > 0.15, -1.0, 0.6),
        "soft": large,
    }
    return {name: np.ascontiguousarray(tile, dtype=np.float32) for name, tile in tiles.items()}


class Canvas:
    """A square picture in the making; `image` is RGB, `labels` holds class indices of the demo vocabulary."""

    def __init__(self, size: int, rng: random.Random) -> None:
        self.size, self.rng, self.unit = size, rng, size / 336
        self.image, self.labels = Image.new("RGB", (size, size)), Image.new("L", (size, size))
        self.light = rng.choice((-1, 1))
        self._picture, self._map = ImageDraw.Draw(self.image), ImageDraw.Draw(self.labels)

    def polygon(self, points: Sequence[Point], name: str, paint: Paint) -> None:
        """Fill a polygon with a paint and label the same pixels with a class; one outside the picture is skipped."""
        x0, x1 = math.floor(min(p[0] for p in points)), math.ceil(max(p[0] for p in points))
        y0, y1 = math.floor(min(p[1] for p in points)), math.ceil(max(p[1] for p in points))
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, self.size - 1), min(y1, self.size - 1)
        if x1 < x0 or y1 < y0:
            return
        if paint.texture is None and not paint.shade:
            self._picture.polygon(points, paint.color)
            self._map.polygon(points, CLASS_INDEX[name])
            return
        width, height = x1 - x0 + 1, y1 - y0 + 1
        mask = Image.new("1", (width, height))
        ImageDraw.Draw(mask).polygon([(x - x0, y - y0) for x, y in points], 1)
        self.image.paste(self._textured(paint, height, width), (x0, y0), mask)
        self.labels.paste(CLASS_INDEX[name], (x0, y0, x1 + 1, y1 + 1), mask)

    def line(self, points: Sequence[Point], width: float, name: str, paint: Paint) -> None:
        """Draw a line of `width` pixels through the points."""
        pixels = max(1, round(width))
        self._picture.line(points, paint.color, pixels)
        self._map.line(points, CLASS_INDEX[name], pixels)

    def label_at(self, x: float, y: float) -> int:
        """Return the class index at a point, which is moved into the picture first."""
        last = self.size - 1
        value = self.labels.getpixel((min(max(round(x), 0), last), min(max(round(y), 0), last)))
        return int(value)  # type: ignore[arg-type]

    def _textured(self, paint: Paint, height: int, width: int) -> Image.Image:
        value = np.zeros((height, width), np.float32)
        if paint.texture is not None:
            tile = texture_tiles()[paint.texture]
            top, left = (self.rng.randrange(max(1, TILE - side + 1)) for side in (height, width))
            rows, columns = (np.arange(height) + top) % TILE, (np.arange(width) + left) % TILE
            value = tile[rows[:, None], columns] * np.float32(paint.amplitude)
        if paint.shade:
            value = value + np.linspace(-1, 1, width, dtype=np.float32) * np.float32(paint.shade * self.light)
        color = np.asarray(paint.color, np.float32)
        return Image.fromarray(np.clip(value[:, :, None] + color, 0, 255).astype(np.uint8))


class Brush:
    """Draws one thing in its own coordinates: u to the right, v up from the ground, both in units of its height."""

    def __init__(self, canvas: Canvas, name: str, x: float, y: float, height: float) -> None:
        rng = canvas.rng
        self.canvas, self.name, self.x, self.y, self.height = canvas, name, x, y, height
        self.flip, self.lean = rng.choice((-1, 1)), rng.uniform(-0.08, 0.08)

    def place(self, u: float, v: float) -> Point:
        """Return the pixel position of (u, v)."""
        return self.x + self.flip * self.height * (u + self.lean * v), self.y - self.height * v

    def polygon(self, points: Sequence[Point], paint: Paint, name: str | None = None) -> None:
        """Fill a polygon; `name` labels it as another class than the thing's own."""
        self.canvas.polygon([self.place(u, v) for u, v in points], name or self.name, paint)

    def box(self, u0: float, v0: float, u1: float, v1: float, paint: Paint, name: str | None = None) -> None:
        """Fill an upright box."""
        self.polygon([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], paint, name)

    def disc(
        self, u: float, v: float, radius_u: float, radius_v: float, paint: Paint, bumps: int = 0
    ) -> None:
        """Fill an ellipse; `bumps` above 0 makes its outline wavy."""
        count = 12 if radius_u * self.height < 8 and not bumps else 28
        points = []
        for step in range(count):
            angle = 2 * math.pi * step / count
            swell = 1 + 0.12 * math.sin(bumps * angle) if bumps else 1.0
            points.append((u + swell * radius_u * math.cos(angle), v + swell * radius_v * math.sin(angle)))
        self.polygon(points, paint)

    def line(self, points: Sequence[Point], width: float, paint: Paint) -> None:
        """Draw a line; its width is in units of the thing's height."""
        self.canvas.line([self.place(u, v) for u, v in points], width * self.height, self.name, paint)
