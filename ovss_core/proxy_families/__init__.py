"""The families of second towers, one file each; a file defines one or several `TowerFamily` and imports no torch."""
