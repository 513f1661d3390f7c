"""Images that a JSON file names: a list of paths, or the images of a COCO file, wherever COCO puts them."""

import posixpath
from collections.abc import Iterator
from typing import Any

from ovss_core.errors import ConfigError, StorageError
from pipelines.storage import open_storage, redact
from pipelines.transport.causes import blamed_on

_PROBES = 20


def named_images(values: Any, pattern: str) -> Iterator[str]:
    """Yield the paths, relative to the file's folder, or addresses that a parsed JSON file names.

    Args:
        pattern: The file's path or URI.

    Raises:
        ConfigError: The file holds neither a list of texts nor images as COCO writes them.
        StorageError: The images of a COCO file lie nowhere near it, and have no address.
    """
    if isinstance(values, list) and values and all(isinstance(entry, str) for entry in values):
        yield from values
        return
    images = values.get("images") if isinstance(values, dict) else None
    if not isinstance(images, list) or not images or not all(isinstance(entry, dict) for entry in images):
        raise ConfigError(
            f"{redact(pattern)} is neither a list of paths nor a COCO file with images; give one of these, or a .txt "
            "list with a path or address a line"
        )
    folder = _folder_of(images, pattern)
    for entry in images:
        name = entry.get("file_name")
        if folder is not None and isinstance(name, str) and name:
            yield name if "://" in name else posixpath.join(folder, name)
        else:
            yield str(entry.get("coco_url") or entry.get("flickr_url") or name or f"image {entry.get('id')}")


def _folder_of(images: list[dict[str, Any]], pattern: str) -> str | None:
    """Find the folder of a COCO file's images, relative to the file; None where they are to be fetched by URL."""
    filesystem, path = open_storage(pattern)
    here, stem = path.rpartition("/")[0], path.rpartition("/")[2].rpartition(".")[0]
    split = stem.rpartition("_")[2]
    names = [entry["file_name"] for entry in images[:_PROBES] if isinstance(entry.get("file_name"), str)]
    folders = ["", "images", split, "../images", f"../{split}", f"../images/{split}", ".."]
    for folder in folders:
        places = [posixpath.normpath(posixpath.join(here, folder, name)) for name in names]
        with blamed_on(pattern):
            if places and any(info.is_file for info in filesystem.get_file_info(places)):
                return folder
    if any(entry.get("coco_url") or entry.get("flickr_url") for entry in images[:_PROBES]):
        return None
    raise StorageError(
        f"none of the first images of {redact(pattern)}, such as {names[0] if names else 'one without file_name'}, lies "
        f"in its folder or in {', '.join(folder for folder in folders if folder)}; put the file beside its images"
    )
