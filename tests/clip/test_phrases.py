import torch

from ovss_core.clip.phrases import ONE_TEMPLATE, PhraseMemory
from ovss_core.clip.text import TEMPLATES, TextEncoder
from tests.tiny import tiny_clip


def test_phrases_have_the_vectors_of_the_text_encoder_however_they_come(tmp_path: object) -> None:
    clip = tiny_clip(lively=False)
    phrases = ["cat", "a much longer phrase of several words", "dog", "Größe"]
    for templates in (ONE_TEMPLATE, TEMPLATES):
        expected = TextEncoder(clip, cache_dir=str(tmp_path)).encode_phrases(phrases, templates)
        together, singly = PhraseMemory(clip, templates=templates), PhraseMemory(clip, templates=templates)
        found = together.encode(phrases)
        for phrase, row in zip(phrases, expected, strict=True):
            torch.testing.assert_close(found[phrase], row, atol=1e-5, rtol=0)
            torch.testing.assert_close(singly.encode([phrase])[phrase], row, atol=1e-5, rtol=0)


def test_a_phrase_is_encoded_once_while_it_is_remembered_and_the_memory_is_bounded() -> None:
    memory = PhraseMemory(tiny_clip(lively=False), most=3)
    memory.encode(["a", "b", "a", "c"])
    assert memory.encoded == 3
    assert list(memory.encode(["a", "b"])) == ["a", "b"]
    assert memory.encoded == 3
    memory.encode(["d"])  # takes the place of c, which nobody asked for since
    memory.encode(["a", "b", "d"])
    assert memory.encoded == 4
    memory.encode(["c"])
    assert memory.encoded == 5
    assert set(memory.encode("defgh")) == set("defgh")
    assert len(memory._rows) == 3


def test_phrases_that_the_text_tower_would_cut_are_named() -> None:
    clip = tiny_clip(lively=False)
    memory = PhraseMemory(clip)
    short, long = "cat " * 8, "cat " * clip.context_length
    assert memory.cut_off(["cat", short, long, "é" * 10]) == [long]
