"""Tests of what is made of finished labels."""
