"""FreeCP: which classes of a vocabulary are in the image, and which of several owns a region."""
