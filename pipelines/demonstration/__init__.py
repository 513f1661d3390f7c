"""The scenes that the project draws, and the training and measurement of the small model."""
