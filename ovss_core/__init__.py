"""Open-vocabulary semantic segmentation with CLIP, SFP feature purification and FreeCP class purification."""
