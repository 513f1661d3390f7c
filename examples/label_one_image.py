"""Label one image, without Ray: `python examples/label_one_image.py photo.jpg cat,dog,sky`.

The model is CLIP ViT-B/16 with OpenAI's weights, which are downloaded once. A third word names another one:
`python examples/label_one_image.py scene.png demo demo` takes the shipped words and the shipped small model.
"""

import sys

from ovss_core import OpenVocabSegmenter, Segmentation


def main(image: str, words: str, model: str = "ViT-B-16") -> Segmentation:
    """Label an image file and print which classes it holds."""
    segmenter = OpenVocabSegmenter.from_pretrained(model, vocabulary=words)
    result = segmenter.segment(image)
    height, width = result.label_map.shape  # the index of a class for each pixel of the image
    print(f"{image}: {width} x {height} pixels")
    for found in sorted(result.present, key=lambda found: -found.share):
        print(f"  {found.name}: {found.share:.1%} of the pixels, mean score {found.confidence:.2f}")
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
