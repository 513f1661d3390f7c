"""Second image towers, whose patches say which of CLIP's belong together: found by name, loaded, driven block by block."""
