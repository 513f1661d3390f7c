"""Composes a scene: a backdrop, what stands in it from far to near, and the light over it."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from pipelines.demonstration.scenes import backdrop, buildings, creatures, nature, vehicles
from pipelines.demonstration.scenes.canvas import TILE, Canvas, texture_tiles
from pipelines.demonstration.scenes.captions import class_shares, describe
from pipelines.demonstration.words import CLASS_INDEX, CLASS_NAMES

SCENES_VERSION = 1
"""Changes whenever the same seed draws another picture."""

Draw = Callable[[Canvas, float, float, float], None]
_WATER = tuple(CLASS_INDEX[name] for name in ("sea", "river", "lake"))

# What stands on land: how to draw it and its height in pixels, midway to the viewer, of a 336-pixel scene.
_LAND_THINGS: dict[str, tuple[Draw, float]] = {
    "house": (buildings.draw_house, 112),
    "shed": (buildings.draw_shed, 90),
    "fence": (buildings.draw_fence, 40),
    "tent": (buildings.draw_tent, 75),
    "bench": (buildings.draw_bench, 48),
    "lighthouse": (buildings.draw_lighthouse, 105),
    "windmill": (buildings.draw_windmill, 105),
    "tree": (nature.draw_tree, 105),
    "bush": (nature.draw_bush, 68),
    "flower": (nature.draw_flower, 58),
    "rock": (nature.draw_rock, 62),
    "car": (vehicles.draw_car, 78),
    "bus": (vehicles.draw_bus, 78),
    "truck": (vehicles.draw_truck, 78),
    "train": (vehicles.draw_train, 75),
    "bird": (creatures.draw_bird, 62),
    "cat": (creatures.draw_cat, 75),
    "dog": (creatures.draw_dog, 75),
    "horse": (creatures.draw_horse, 80),
    "cow": (creatures.draw_cow, 76),
    "sheep": (creatures.draw_sheep, 72),
    "person": (creatures.draw_person, 82),
    "umbrella": (creatures.draw_umbrella, 80),
}
_SKY_THINGS: dict[str, tuple[Draw, float]] = {
    "cloud": (nature.draw_cloud, 48),
    "aeroplane": (vehicles.draw_aeroplane, 62),
    "balloon": (vehicles.draw_balloon, 76),
    "bird": (creatures.draw_bird, 55),
}
_WATER_THINGS: dict[str, tuple[Draw, float]] = {
    "boat": (vehicles.draw_boat, 75),
    "bridge": (buildings.draw_bridge, 62),
}


@dataclass(frozen=True)
class Scene:
    """One drawn picture.

    Attributes:
        image: uint8 [size, size, 3], RGB.
        labels: uint8 [size, size], class indices of the demo vocabulary; every pixel has a class.
        caption: A sentence that names every class in the label map.
        classes: Names of the classes in the label map, the largest first.
    """

    image: np.ndarray
    labels: np.ndarray
    caption: str
    classes: tuple[str, ...]


def render_scene(seed: int, size: int = 336) -> Scene:
    """Draw the scene of a seed; the same seed and size give the same bytes on every machine.

    Args:
        seed: Any integer of at least 0.
        size: Side of the square picture in pixels, at least 32.

    Raises:
        ValueError: The size is below 32 or the seed is negative.
    """
    if size < 32 or seed < 0:
        raise ValueError(
            f"a scene needs a size of at least 32 and a seed of at least 0, got {size} and {seed}"
        )
    rng = random.Random(f"ovss scene {SCENES_VERSION} {seed}")
    canvas = Canvas(size, rng)
    horizon = _draw_backdrop(canvas)
    _place_water_things(canvas)
    _place_land_things(canvas, horizon)
    labels = np.array(canvas.labels)
    shares = class_shares(labels)
    caption = describe(shares, rng, most=len(CLASS_NAMES), synonyms=False)
    order = [index for index in np.argsort(-shares, kind="stable") if shares[index] > 0]
    return Scene(_light(canvas), labels, caption, tuple(CLASS_NAMES[index] for index in order))


def _draw_backdrop(canvas: Canvas) -> float:
    rng, size = canvas.rng, canvas.size
    night = rng.random() < 0.15
    backdrop.paint_sky(canvas, night)
    horizon = rng.choice((rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.6), rng.uniform(0.05, 0.25))) * size
    if rng.random() < 0.75:
        lamp = nature.draw_moon if night or rng.random() < 0.35 else nature.draw_sun
        lamp(
            canvas,
            rng.uniform(0.08, 0.92) * size,
            rng.uniform(0.18, 0.8) * max(horizon, 0.2 * size),
            rng.uniform(36, 64) * canvas.unit,
        )
    for name in rng.choices(tuple(_SKY_THINGS), (4, 2, 2, 1), k=rng.randint(0, 4)):
        draw, height = _SKY_THINGS[name]
        height *= rng.uniform(0.7, 1.5) * canvas.unit
        draw(
            canvas, rng.uniform(0.05, 0.95) * size, rng.uniform(0.3, 1.0) * max(horizon, 0.25 * size), height
        )
    water = rng.choice(("sea", "sea", "river", "river", "lake", "lake", "none"))
    if rng.random() < (0.25 if water == "sea" else 0.45):
        backdrop.paint_mountains(canvas, horizon)
    if rng.random() < (0.25 if water == "sea" else 0.45):
        backdrop.paint_hills(canvas, horizon)
    _draw_ground(canvas, horizon, water)
    return horizon


def _draw_ground(canvas: Canvas, horizon: float, water: str) -> None:
    rng, size = canvas.rng, canvas.size
    first, second = rng.sample(backdrop.LANDS, 2)
    if water == "sea":
        backdrop.fill_below(canvas, [(-5, horizon), (size + 5, horizon)], "sea", backdrop.water_paint(canvas))
        shore = horizon + rng.uniform(0.3, 0.75) * (size - horizon)
        first = rng.choice(("sand", "sand", first))
        backdrop.fill_below(
            canvas,
            backdrop.wavy(canvas, shore, rng.uniform(0.01, 0.04)),
            first,
            backdrop.land_paint(canvas, first),
        )
        horizon = shore
    else:
        edge = backdrop.wavy(canvas, horizon, rng.uniform(0, 0.02))
        backdrop.fill_below(canvas, edge, first, backdrop.land_paint(canvas, first))
    if rng.random() < 0.6:
        y = horizon + rng.uniform(0.3, 0.75) * (size - horizon)
        backdrop.fill_below(
            canvas,
            backdrop.wavy(canvas, y, rng.uniform(0, 0.06)),
            second,
            backdrop.land_paint(canvas, second),
        )
    if water == "river":
        backdrop.paint_river(canvas, horizon)
    elif water == "lake":
        backdrop.paint_lake(canvas, horizon)
    if rng.random() < 0.4:
        backdrop.paint_road(canvas, horizon)


def _place_water_things(canvas: Canvas) -> None:
    rng = canvas.rng
    rows, columns = np.nonzero(np.isin(np.asarray(canvas.labels)[::8, ::8], _WATER))
    if len(rows) < 12:
        return
    for name in rng.choices(("boat", "bridge"), (3, 2), k=rng.randint(0, 3)):
        draw, height = _WATER_THINGS[name]
        spot = rng.randrange(len(rows))
        draw(
            canvas,
            columns[spot] * 8.0,
            rows[spot] * 8.0 + 6 * canvas.unit,
            height * rng.uniform(0.7, 1.4) * canvas.unit,
        )


def _place_land_things(canvas: Canvas, horizon: float) -> None:
    rng, size = canvas.rng, canvas.size
    placed = []
    favorites = rng.sample(tuple(_LAND_THINGS), 5)
    for _ in range(rng.randint(4, 10)):
        name = rng.choice(favorites if rng.random() < 0.5 else tuple(_LAND_THINGS))
        for _ in range(5):
            x, y = rng.uniform(0.03, 0.97) * size, horizon + rng.uniform(0.12, 1.05) * (size - horizon)
            if canvas.label_at(x, y) not in _WATER:
                placed.append((y, x, name))
                break
    for y, x, name in sorted(placed):
        draw, height = _LAND_THINGS[name]
        near = (y - horizon) / (size - horizon)
        draw(canvas, x, y, height * (0.7 + 0.6 * near) * rng.uniform(0.75, 1.35) * canvas.unit)


def _light(canvas: Canvas) -> np.ndarray:
    """Return the picture under the scene's light: exposure, tint, a gradient, film grain and sometimes blur."""
    rng, size = canvas.rng, canvas.size
    picture: Image.Image = canvas.image
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 0.9)))
    gain = np.asarray([rng.uniform(0.92, 1.08) * 1.0 for _ in range(3)], np.float32) * np.float32(
        rng.choice((1, 1, rng.uniform(0.6, 1.15)))
    )
    ramp = 1 + np.linspace(-1, 1, size, dtype=np.float32) * np.float32(rng.uniform(-0.15, 0.15))
    offset, top, left = np.float32(rng.uniform(-14, 14)), rng.randrange(TILE), rng.randrange(TILE)
    rows, columns = (np.arange(size) + top) % TILE, (np.arange(size) + left) % TILE
    grain = texture_tiles()["fine"][rows[:, None], columns] * np.float32(rng.uniform(0, 14))
    values = np.asarray(picture, np.float32) * (ramp[None, :, None] * gain) + (grain + offset)[:, :, None]
    return np.clip(values, 0, 255).astype(np.uint8)
