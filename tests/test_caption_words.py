import pytest

from ovss_core.caption_words import CaptionWords, plurals
from ovss_core.vocabulary import Vocabulary

WORDS = CaptionWords(
    Vocabulary.from_names(
        [
            "background: wall, sky",
            "bear",
            "polar bear, ice bear",
            "person: person, man, woman in a hat",
            "glass",
            "glasses",
            "bus",
            "Sofa-Bed",
            "baby",
            "knife",
            "Größe",
        ]
    )
)


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A bear.", [1]),
        ("two polar bears meet a BEAR", [2, 1]),
        ("an ice-bear", [2]),
        ("unbearable bearing", []),
        ("People and policemen wave at women in a hat", [3]),
        ("a woman in a hats", [3]),
        ("a glass, her glasses", [4, 5]),
        ("buses; babies!\nknives", [6, 8, 9]),
        ("the sofa bed's cover", [7]),
        ("GRO\u0308SSE, Gro\u0308\u00dfe", [10]),
        ("a wall under the sky", []),
        ("", []),
        ("bear bear polar", [1]),
    ],
)
def test_a_caption_names_whole_words_the_longest_first_in_singular_and_plural(
    caption: str, found: list[int]
) -> None:
    assert WORDS.find(caption) == found


def test_no_caption_names_what_holds_no_letter_and_no_background() -> None:
    assert CaptionWords(Vocabulary.from_names(["-", "background"])).find("- background -") == []


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("dog", ["dogs"]),
        ("box", ["boxen", "boxes"]),
        ("city", ["cities", "citys"]),
        ("boy", ["boys"]),
        ("potato", ["potatoes", "potatos"]),
        ("policewoman", ["policewomen", "policewomans"]),
    ],
)
def test_plurals_are_the_usual_ones(word: str, found: list[str]) -> None:
    assert set(found) <= set(plurals(word))
    assert word not in plurals(word)
