"""The review finds what is wrong with sentences, and leaves good ones alone."""

import sys

import pytest

from ovss_core import description_review
from ovss_core.description_review import ReviewRules, count_clip_tokens, review, review_class
from ovss_core.vocabulary import Vocabulary

WORDS = Vocabulary.from_names(
    ["background: sky, wall", "cat", "dog, puppy", "light", "trafficlight", "dining table", "table"]
)
SPOKEN = {"trafficlight": "traffic light"}
RULES = ReviewRules(least=1, most=2)
GOOD = {
    "cat": [
        "A cat has whiskers before a wall and under the sky.",
        "The catlike grace of cats is well known.",
    ],
    "dog": ["Every puppy follows its master around the yard."],
    "light": ["The light of a bulb is warm and yellow."],
    "trafficlight": ["One traffic light shows red above amber above green."],
    "dining table": ["Guests sit around the dining table for dinner."],
    "table": ["Four legs carry the flat top of a table."],
}


def found(changes: dict[str, list[str]], rules: ReviewRules = RULES) -> list[str]:
    sentences = {name: entry for name, entry in {**GOOD, **changes}.items() if entry}
    return list(map(str, review(WORDS, sentences, count_clip_tokens, SPOKEN, rules)))


def test_good_sentences_have_no_fault_and_a_background_needs_none() -> None:
    assert found({}) == []


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"cat": []}, ["cat: has no sentence"]),
        ({"cow": ["A cow moos at the gate."]}, ["cow: is no class of the vocabulary"]),
        ({"cat": ["A cat purrs.", "A cat naps.", "A cat plays."]}, ["has 3 sentences", *["words"] * 3]),
        ({"cat": ["A cat sits beside two dogs."]}, ["names a rival (dog): A cat sits beside two dogs."]),
        ({"cat": ["A cat fears the Puppy's bark."]}, ["names a rival (puppy)"]),
        ({"cat": ["A cat lies under the dining table."]}, ["names a rival (dining table)"]),
        ({"light": ["The light differs from a traffic light."]}, ["names a rival (traffic light)"]),
        ({"cat": ["It has whiskers and pointed ears."]}, ["does not say which class"]),
        ({"cat": ["a cat has whiskers."]}, ["is no sentence from a capital letter"]),
        ({"cat": ["A cat has\nwhiskers and claws."]}, ["has a line end"]),
        ({"cat": [f"A cat is {'very ' * 30}small."]}, ["has 34 words, and not 4 to 30"]),
        ({"cat": ["A cat " + "incomprehensibilities " * 20 + "purrs."]}, ["and the text tower reads 77"]),
        (
            {"cat": ["A cat stands on four soft paws."], "dog": ["A dog stands on four soft paws."]},
            ["dog: says what a sentence of 'cat' says: A dog stands on four soft paws."],
        ),
        (
            {"cat": ["A cat has soft gray fur.", "The soft gray fur a cat has."]},
            ["cat: says what a sentence of 'cat' says"],
        ),
    ],
)
def test_a_fault_is_found_and_named(changes: dict[str, list[str]], faults: list[str]) -> None:
    lines = found(changes)
    assert len(lines) == len(faults), lines
    assert all(fault in line for fault, line in zip(faults, lines, strict=True)), lines


def test_a_way_to_begin_is_not_used_for_every_class() -> None:
    begun = {
        "cat": ["You can easily tell the cat by whiskers."],
        "dog": ["You can easily tell the dog by barking loudly."],
        "light": ["You can easily tell the light even in darkest night."],
        "table": ["You can easily tell the table because four legs carry it."],
    }
    assert found(begun) == ["you can easily tell the _: begins 4 sentences, more than 3"]
    assert found(begun, ReviewRules(least=1, most=2, same_opening=4)) == []


def test_one_class_is_reviewed_against_its_rivals_names() -> None:
    [finding] = review_class("cat", ["A cat chases a dog."], WORDS, count_clip_tokens, RULES)
    assert str(finding) == "cat: names a rival (dog): A cat chases a dog."


def test_tokens_are_counted_as_clip_counts_them() -> None:
    assert count_clip_tokens(["", "a cat", "a cat."]) == [2, 4, 5]


def test_tokens_are_counted_without_the_package_around_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a photo of a naïve café owner's two dogs", "", "3 o'clock &amp; all's well"]
    from open_clip.tokenizer import SimpleTokenizer

    expected = [len(SimpleTokenizer().encode(text)) + 2 for text in texts]
    monkeypatch.delitem(sys.modules, "open_clip")
    description_review._clip_tokenizer.cache_clear()
    try:
        assert count_clip_tokens(texts) == expected
        assert "open_clip" not in sys.modules
    finally:
        description_review._clip_tokenizer.cache_clear()
