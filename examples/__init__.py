"""Scripts to begin with; each runs by itself, and a test runs it on the model that ships with ovss."""
