"""Draws picture-book scenes with exact label maps and captions, each from one seed."""

from pipelines.demonstration.scenes.captions import describe
from pipelines.demonstration.scenes.scene import SCENES_VERSION, Scene, render_scene

__all__ = ["SCENES_VERSION", "Scene", "describe", "render_scene"]
