"""Lay an image beside its labels with each refiner: `python -m examples.compare_refiners photo.jpg cat,dog,sky out.png`.

The model is CLIP ViT-B/16 with OpenAI's weights, which are downloaded once; a fourth word names another one, such as `demo`.
"""

import sys
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from ovss_core import OpenVocabSegmenter, SegmenterConfig
from ovss_core.clip.recommended import filled, recommended_settings
from ovss_core.config import ModelConfig
from ovss_core.head_names import refiner_names
from pipelines.label.palette import class_colors

HEADING = 20


def main(image: str, words: str, output: str, model: str = "ViT-B-16") -> Image.Image:
    """Write a row of pictures: the image, then its labels without a refiner and with each of the shipped ones."""
    settings: SegmenterConfig = filled(recommended_settings(ModelConfig(model)))
    with Image.open(image) as file:
        photograph = file.convert("RGB")
    panels = {"image": photograph}
    for refiner in refiner_names():
        segmenter = OpenVocabSegmenter.from_pretrained(
            model, vocabulary=words, config=replace(settings, refine=refiner)
        )
        colors = class_colors(segmenter.vocabulary)
        labels = segmenter.segment(photograph).label_map
        panels[refiner] = Image.fromarray(colors[np.minimum(labels, len(colors) - 1)])
    sheet = Image.new("RGB", (photograph.width * len(panels), photograph.height + HEADING), "white")
    for place, (name, panel) in enumerate(panels.items()):
        sheet.paste(panel, (place * photograph.width, HEADING))
        ImageDraw.Draw(sheet).text((place * photograph.width + 4, 4), name, "black")
    sheet.save(output)
    return sheet


if __name__ == "__main__":
    main(*sys.argv[1:])
