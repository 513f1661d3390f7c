"""Tests of CaR, the filter of words in rounds."""
