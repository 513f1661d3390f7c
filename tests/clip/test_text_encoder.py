from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ovss_core.clip.text import (
    TEMPLATES,
    EncodedVocabulary,
    TextEncoder,
    cut_texts,
    encode_prompts,
    encode_vocabulary,
)
from ovss_core.clip.weights import load_clip
from ovss_core.config import ModelConfig
from ovss_core.errors import ConfigError
from ovss_core.vocabulary import Vocabulary
from tests.tiny import NAME, WORDS, ParameterTree, tiny_clip

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.mark.parametrize("name", [NAME, f"{NAME}-quickgelu"])
def test_prompts_cut_to_the_longest_encode_as_open_clip_encodes_them_whole(name: str) -> None:
    clip = tiny_clip(name)
    prompts = ["cat", "a photo of a very long haired cat on a red sofa.", "", "dog " * 200]
    for subset in (prompts, prompts[:1], prompts[:2], prompts[2:3]):
        expected = clip.model.encode_text(clip.tokenizer(subset))
        assert torch.allclose(encode_prompts(clip, subset, CPU), expected, atol=1e-5)


def test_a_phrase_is_the_normalized_mean_of_its_normalized_prompts(tmp_path: Path) -> None:
    clip = tiny_clip()
    embeddings = TextEncoder(clip, cache_dir=tmp_path).encode_phrases(["cat", "red sofa"])
    for phrase, row in zip(["cat", "red sofa"], embeddings, strict=True):
        total = np.zeros(24)
        for template in TEMPLATES:
            prompt = clip.model.encode_text(clip.tokenizer([template.format(phrase)]))[0].double().numpy()
            total += prompt / np.linalg.norm(prompt)
        np.testing.assert_allclose(row.numpy(), total / np.linalg.norm(total), atol=1e-5)
    assert len(TEMPLATES) == 80


def test_repeated_phrases_and_their_order_do_not_matter(tmp_path: Path) -> None:
    encoder = TextEncoder(tiny_clip(), cache_dir=tmp_path)
    both = encoder.encode_phrases(["cat", "dog", "cat"], ("a {}.",))
    assert torch.equal(both[0], both[2])
    turned = TextEncoder(tiny_clip(), cache_dir=tmp_path / "other").encode_phrases(["dog", "cat"], ("a {}.",))
    assert torch.allclose(both[:2].flip(0), turned, atol=1e-6)


def test_no_phrase_gives_no_rows(tmp_path: Path) -> None:
    assert TextEncoder(tiny_clip(), cache_dir=tmp_path).encode_phrases([]).shape == (0, 24)


def _poisoned(encoder: TextEncoder) -> None:
    """Spoil the text tower, so that anything it computes from now on is NaN."""
    with torch.no_grad():
        encoder._clip.model.token_embedding.weight.fill_(float("nan"))


def test_remembered_phrases_do_not_touch_the_model(tmp_path: Path) -> None:
    first = TextEncoder(tiny_clip(), cache_dir=tmp_path).encode_phrases(["cat", "dog"])
    second = TextEncoder(tiny_clip(), cache_dir=tmp_path)
    _poisoned(second)
    assert torch.equal(second.encode_phrases(["dog", "cat"]), first.flip(0))
    assert second.encode_phrases(["cow"]).isnan().all()


def _entries(folder: Path) -> Iterator[Path]:
    return folder.rglob("*.npy")


@pytest.mark.parametrize(
    "damage", ["empty", "truncated", "garbage", "zip", "other_shape", "other_type", "nan"]
)
def test_a_damaged_cache_entry_is_computed_anew_and_repaired(damage: str, tmp_path: Path) -> None:
    encoder = TextEncoder(tiny_clip(), cache_dir=tmp_path)
    expected = encoder.encode_phrases(["cat", "dog"])
    for entry in _entries(tmp_path):
        content = entry.read_bytes()
        if damage == "other_shape":
            np.save(entry, np.zeros(5, np.float32))
        elif damage == "other_type":
            np.save(entry, np.array(["text"] * 24))
        elif damage == "nan":
            np.save(entry, np.full(24, np.nan, np.float32))
        else:
            spoiled = {
                "empty": b"",
                "truncated": content[:-9],
                "garbage": b"\x93NUMPY garbage",
                "zip": b"PK\x03\x04x",
            }
            entry.write_bytes(spoiled[damage])
    assert torch.allclose(encoder.encode_phrases(["cat", "dog"]), expected, atol=1e-6)
    _poisoned(encoder)
    assert torch.allclose(encoder.encode_phrases(["cat", "dog"]), expected, atol=1e-6)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    expected = TextEncoder(tiny_clip(), cache_dir=tmp_path / "cache").encode_phrases(["cat"])
    assert torch.equal(TextEncoder(tiny_clip(), cache_dir=blocked).encode_phrases(["cat"]), expected)


def test_the_cache_leaves_no_temporary_files(tmp_path: Path) -> None:
    TextEncoder(tiny_clip(), cache_dir=tmp_path).encode_phrases(["cat", "dog"])
    assert len(list(_entries(tmp_path))) == len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def test_the_environment_names_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVSS_CACHE", str(tmp_path))
    TextEncoder(tiny_clip()).encode_phrases(["cat"])
    assert len(list(_entries(tmp_path / "text"))) == 1


def test_equal_weights_with_another_activation_do_not_share_cache_entries(tmp_path: Path) -> None:
    state = tiny_clip().model.state_dict()
    module = ParameterTree({key: value.half() for key, value in state.items()}, {"input_resolution": 32})
    torch.jit.save(torch.jit.trace(module, torch.zeros(1)), str(tmp_path / "archive.pt"))
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "plain.pt")
    quick, plain = (load_clip(ModelConfig(NAME, str(tmp_path / name))) for name in ("archive.pt", "plain.pt"))
    assert quick.weights_hash() == plain.weights_hash()
    first = TextEncoder(quick, cache_dir=tmp_path).encode_phrases(["cat"])
    second = TextEncoder(plain, cache_dir=tmp_path).encode_phrases(["cat"])
    expected = plain.model.encode_text(plain.tokenizer([template.format("cat") for template in TEMPLATES]))
    assert not torch.equal(first, second)
    mean = torch.nn.functional.normalize(expected, dim=-1).mean(0)
    assert torch.allclose(second[0], mean / mean.norm(), atol=1e-6)


@pytest.fixture(scope="module")
def encoder(clip_cache: Path) -> TextEncoder:
    return TextEncoder(tiny_clip(), cache_dir=clip_cache)


def test_a_class_without_description_is_described_by_the_mean_of_its_phrases(encoder: TextEncoder) -> None:
    text = encode_vocabulary(encoder, Vocabulary.from_names(WORDS))
    mean = text.phrase_embeddings[1] + text.phrase_embeddings[2]
    assert torch.allclose(text.description_embeddings[1], mean / mean.norm(), atol=1e-6)
    assert torch.allclose(text.description_embeddings[0], text.phrase_embeddings[0], atol=1e-6)
    assert text.phrase_class.tolist() == [0, 1, 1, 2, 3, 4, 5]


def test_a_description_is_the_mean_of_its_sentences_without_templates(encoder: TextEncoder) -> None:
    sentences = ["a small animal with whiskers", "it purrs"]
    text = encode_vocabulary(encoder, Vocabulary.from_names(WORDS), {"cat": sentences})
    clip = tiny_clip()
    rows = torch.nn.functional.normalize(clip.model.encode_text(clip.tokenizer(sentences)), dim=-1)
    expected = torch.nn.functional.normalize(rows.mean(0), dim=-1)
    assert torch.allclose(text.description_embeddings[0], expected, atol=1e-5)


def test_every_row_is_a_unit_vector_but_a_background_without_phrases(encoder: TextEncoder) -> None:
    vocabulary = Vocabulary.from_names(["background:", *WORDS])
    text = encode_vocabulary(encoder, vocabulary, distractors=["violin", "teapot"])
    for rows in (text.phrase_embeddings, text.description_embeddings[1:], text.null_embeddings):
        assert torch.allclose(rows.norm(dim=-1), torch.ones(len(rows)), atol=1e-5)
    assert text.description_embeddings[0].abs().max() == 0
    assert text.null_embeddings.shape == (2, 24)


def test_a_classifier_survives_the_trip_through_bytes(encoder: TextEncoder) -> None:
    vocabulary = Vocabulary.from_names(["background:", "größe: grand, café", "ネコ"], "mine")
    for distractors in ([], ["violin"]):
        text = encode_vocabulary(encoder, vocabulary, distractors=distractors)
        again = EncodedVocabulary.from_bytes(text.to_bytes())
        assert again.vocabulary == vocabulary
        assert again.weights_hash == text.weights_hash == encoder.weights_hash
        for name in ("phrase_embeddings", "description_embeddings", "null_embeddings"):
            assert torch.equal(getattr(again, name), getattr(text, name))
        assert torch.equal(again.phrase_class, text.phrase_class)


def test_a_description_of_an_unknown_class_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(
        ConfigError, match="descriptions name classes that the vocabulary lacks: horse; remove"
    ):
        encode_vocabulary(encoder, Vocabulary.from_names(WORDS), {"horse": ["it neighs"]})


@pytest.mark.parametrize("sentences", [[], "one sentence that is not in a list"])
def test_a_description_that_is_no_list_of_sentences_is_refused(
    sentences: list[str] | str, encoder: TextEncoder
) -> None:
    with pytest.raises(ConfigError, match="description of 'cat' is not a list of sentences"):
        encode_vocabulary(encoder, Vocabulary.from_names(WORDS), {"cat": sentences})


def _exactly(tokens: int) -> str:
    """Return words that the tokenizer makes so many tokens of, start and end included."""
    return " ".join(["cat"] * (tokens - 2))


def test_a_sentence_that_fits_to_the_last_token_is_not_called_cut() -> None:
    clip = tiny_clip()
    assert int(clip.tokenizer([_exactly(77)])[0].argmax()) == 76
    assert cut_texts(lambda: clip.tokenizer, 77, [], {"cat": [_exactly(77)]}) == []
    [warning] = cut_texts(
        lambda: clip.tokenizer, 77, [], {"cat": ["short", _exactly(78)], "dog": ["cat " * 500]}
    )
    assert "reads 77 tokens: the end of 'cat cat cat" in warning
    assert "(and of 1 more) is cut off" in warning


def test_a_phrase_counts_with_the_longest_template_around_it() -> None:
    clip = tiny_clip()
    frame = max(len(clip.tokenizer.encode(template.format(""))) for template in TEMPLATES)  # type: ignore[attr-defined]
    fits = " ".join(["cat"] * (75 - frame))
    assert cut_texts(lambda: clip.tokenizer, 77, ["dog", fits]) == []
    assert f"the end of {(fits + ' cat')[:77]}" in cut_texts(
        lambda: clip.tokenizer, 77, ["dog", fits + " cat"]
    )[0].replace("'", "")


def test_exclamation_marks_whose_number_is_that_of_the_padding_count_too() -> None:
    clip = tiny_clip()
    marks = "! " * 100
    assert len(cut_texts(lambda: clip.tokenizer, 77, [], {"cat": [marks]})) == 1


def test_short_texts_do_not_load_a_tokenizer() -> None:
    def fail() -> None:
        raise AssertionError("loaded for nothing")

    assert cut_texts(fail, 77, ["cat", "a small furry animal"], {"cat": ["it purrs"]}) == []


def test_a_smaller_tower_cuts_sooner() -> None:
    clip = load_clip(ModelConfig("demo", "random"))
    [warning] = cut_texts(lambda: clip.tokenizer, clip.context_length, ["cat", "cat " * 25])
    assert "the text tower reads 32 tokens" in warning
