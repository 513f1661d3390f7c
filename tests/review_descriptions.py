"""Review the sentences that ship: `python -m tests.review_descriptions [VOCABULARY ...]`; status 1 where one is wrong."""

import sys
from collections.abc import Sequence

from ovss_core.description_review import Finding, count_clip_tokens, review
from ovss_core.shipped_descriptions import shipped_descriptions
from ovss_core.vocabulary import Vocabulary


def findings_of(name: str) -> tuple[int, int, list[Finding]]:
    """Return how many classes and sentences a shipped vocabulary has, and what is wrong with them."""
    vocabulary = Vocabulary.load(name)
    shipped = shipped_descriptions(vocabulary)
    assert shipped is not None, f"{name} does not ship"
    found = review(vocabulary, shipped.sentences, count_clip_tokens, shipped.spoken)
    return len(shipped.sentences), sum(map(len, shipped.sentences.values())), found


def main(names: Sequence[str]) -> int:
    """Print what was found, vocabulary by vocabulary, and return the exit status."""
    faults = 0
    for name in names or Vocabulary.shipped_names():
        classes, sentences, found = findings_of(name)
        for finding in found:
            print(f"  {finding}")
        print(f"{name}: {classes} classes, {sentences} sentences, {len(found)} faults")
        faults += len(found)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
