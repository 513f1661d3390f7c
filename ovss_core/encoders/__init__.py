"""Image and text towers of CLIP, and where their weights come from."""
