"""Pixels in, pixels out: files decoded, images resized, cut into windows and stitched again. Knows no model."""
