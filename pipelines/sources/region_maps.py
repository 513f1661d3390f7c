"""Region maps beside the images of a run: a folder of index PNGs that any mask generator wrote."""

from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from ovss_core.errors import ImageError
from ovss_core.regions import RegionMap
from pipelines.storage import Folder, redact


class RegionFolder:
    """A folder of region maps, named as the images' ids with the ending .png.

    Args:
        uri: Local path or address.
    """

    def __init__(self, uri: str) -> None:
        self._folder = Folder(uri)

    def read(self, image_id: str, max_pixels: int) -> RegionMap:
        """Read the region map of an image.

        Raises:
            ImageError: There is none, or it cannot be read or decoded.
        """
        name = region_file(image_id)
        try:
            data = self._folder.read(name)
        except FileNotFoundError as error:
            raise ImageError(
                f"no region map {name} in {self._folder.public_uri}; give every image one (0 everywhere: no region)"
            ) from error
        except (OSError, ValueError, ImportError, pa.ArrowException) as error:
            raise ImageError(f"the region map {name} cannot be read: {error}") from error
        return RegionMap.decode(data, max_pixels)


def region_file(image_id: str) -> str:
    """Return the name of an image's region map in its folder: ``below/photo.jpg`` has ``below/photo.png``."""
    return str(PurePosixPath(image_id).with_suffix(".png"))


def described_regions(uri: str | None) -> dict[str, Any]:
    """Return what a run's identity says of its region maps; nothing where there are none."""
    return {"region_maps": redact(uri)} if uri else {}
