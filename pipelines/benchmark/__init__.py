"""How long labelling takes beside the plain encoder, the papers' one-window loops, and the Ray job."""
