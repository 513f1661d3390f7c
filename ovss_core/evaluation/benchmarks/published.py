"""Published mIoU in percent, from the papers' tables (ViT-B/16, OpenAI weights)."""

_ORDER = ("voc21", "context60", "coco_object", "voc20", "context59", "coco_stuff164k", "ade20k", "cityscapes")
_MEAN_IOU: dict[tuple[str, str], tuple[float, ...]] = {
    ("clip", "none"): (18.6, 9.9, 8.1, 49.4, 11.1, 5.7, 3.1, 6.5),
    ("maskclip", "none"): (38.8, 23.6, 20.6, 74.9, 26.4, 16.4, 9.8, 12.6),
    ("sclip", "none"): (59.7, 31.7, 33.5, 81.5, 34.5, 22.7, 16.5, 32.3),
    ("clearclip", "none"): (57.0, 32.6, 33.0, 80.9, 35.9, 23.9, 16.7, 30.0),
    ("naclip", "none"): (58.9, 32.2, 33.2, 79.7, 35.2, 23.3, 17.4, 35.5),
    ("sfp", "none"): (63.9, 37.2, 37.9, 84.5, 39.9, 26.4, 20.8, 41.1),
    # with DINO ViT-B/8, from its repository's table
    ("proxyclip", "none"): (61.3, 35.3, 37.5, 80.3, 39.1, 26.5, 20.2, 38.1),
    ("maskclip", "freecp"): (64.4, 34.7, 36.2, 84.1, 36.6, 23.3, 17.6, 32.5),
    ("sclip", "freecp"): (65.8, 35.3, 37.2, 84.3, 38.0, 24.9, 18.4, 33.3),
    ("clearclip", "freecp"): (64.5, 35.7, 36.9, 81.5, 39.3, 26.1, 18.9, 34.4),
    ("gem", "freecp"): (64.7, 35.5, 36.9, 80.6, 39.1, 25.8, 17.8, 35.7),
}


def published_miou(benchmark: str, host: str, purify: str) -> float | None:
    """Return the published mIoU of a host with or without FreeCP, in percent; None if none was published."""
    row = _MEAN_IOU.get((host, purify))
    return row[_ORDER.index(benchmark)] if row and benchmark in _ORDER else None
