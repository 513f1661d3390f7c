"""The report on labels: numbers from the markers of all parts, rows that are sampled, pictures of some images."""
