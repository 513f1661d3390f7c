"""What a forked worker would do at its first photograph and its first word, done before the fork when this is imported."""

from PIL import Image

from ovss_core.clip.weights import load_tokenizer
from ovss_core.config import ModelConfig

Image.init()
load_tokenizer(ModelConfig("demo"))
