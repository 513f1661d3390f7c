"""Let a language model write the sentences of a vocabulary's classes."""
