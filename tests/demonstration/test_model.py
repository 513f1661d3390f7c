import open_clip
import torch
from safetensors.torch import load_file

from ovss_core.clip.demo import DEMO_ARCHITECTURE, demo_weights_path, register_demo_model
from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig
from pipelines.demonstration.objective import WordBank, encode_text
from pipelines.demonstration.tower_reader import TowerReader
from pipelines.demonstration.words import ABSENT_WORDS, CLASS_NAMES


def test_the_weights_are_half_precision_and_at_most_25_megabytes() -> None:
    assert demo_weights_path().stat().st_size <= 25_000_000
    assert {tensor.dtype for tensor in load_file(demo_weights_path()).values()} == {torch.float16}


def test_registering_twice_changes_nothing() -> None:
    register_demo_model()
    before = open_clip.get_model_config(DEMO_ARCHITECTURE)
    register_demo_model()
    assert open_clip.get_model_config(DEMO_ARCHITECTURE) == before
    assert before["vision_cfg"]["layers"] == 12
    assert before["vision_cfg"]["patch_size"] == 16
    assert before["text_cfg"]["vocab_size"] == 49408


def test_training_reads_both_towers_as_open_clip_does() -> None:
    model = load_clip(ModelConfig(name="demo")).model
    bank = WordBank(open_clip.get_tokenizer(DEMO_ARCHITECTURE))
    texts = ["a cat", "a photo of the small sheep, a dog and a hot air balloon"]
    expected = model.encode_text(open_clip.get_tokenizer(DEMO_ARCHITECTURE)(texts), normalize=True)
    torch.testing.assert_close(encode_text(model, bank.tokens(texts)), expected, atol=1e-5, rtol=0)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    reader = TowerReader(model.visual)
    summary = reader.class_features(reader.trace(images, reader.draw_positions((14, 14))))
    torch.testing.assert_close(summary, model.encode_image(images, normalize=True), atol=1e-5, rtol=0)


def test_every_prompt_of_every_word_fits_the_context() -> None:
    tokenizer = open_clip.get_tokenizer(DEMO_ARCHITECTURE)
    words = (*CLASS_NAMES, *ABSENT_WORDS)
    prompts = [template(word) for template in open_clip.OPENAI_IMAGENET_TEMPLATES for word in words]
    assert int((tokenizer(prompts) != 0).sum(1).max()) < 32
