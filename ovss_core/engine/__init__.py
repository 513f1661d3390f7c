"""The labelling engine: images to proposals, proposals to labels."""
