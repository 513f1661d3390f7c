"""From pictures to windows, and from window scores to labels."""
