"""SFP: finding and repairing outlier tokens, and sharpening the dense features."""
