"""CaR: which words of a vocabulary an image keeps, found in rounds by showing it, masked for each word, to the encoder."""
