"""Region maps of a corpus out of a mask generator, made once and used for any vocabulary."""
