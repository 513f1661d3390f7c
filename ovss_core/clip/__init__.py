"""CLIP opened up: weights, text, and the image tower's blocks. Knows no method."""
