"""The host's own scores of the words that each image keeps, taken out of those of all words."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovss_core.class_purification.class_maps import NOBODY
from ovss_core.transfer import upload


def kept_table(classes: Int[np.ndarray, "images places"], count: int) -> Bool[np.ndarray, "images classes"]:
    """Mark the classes that each image keeps in a table of all.

    Args:
        classes: Classes that each image keeps, `NOBODY` behind the last.
        count: Classes of the vocabulary.
    """
    kept = np.zeros((len(classes), count + 1), bool)
    np.put_along_axis(kept, classes, True, 1)  # what is nobody's lies in the last column
    table: np.ndarray = kept[:, :-1]
    return table


def scores_of_kept_words(
    classes: Int[np.ndarray, "images places"],
    count: int,
    phrase_class: Int[np.ndarray, " phrases"],
    always: int | None,
    maps: Float[Tensor, "windows maps patches"],
    embeddings: Float[Tensor, "phrases features"] | None,
    image: Int[Tensor, " windows"],
) -> tuple[Int[np.ndarray, "images columns"], Float[Tensor, "windows columns patches"]]:
    """Take the scores of the kept words out of all.

    Args:
        classes: Classes that each image keeps, `NOBODY` behind the last.
        count: Classes of the vocabulary.
        phrase_class: Class of each phrase.
        always: A class that every image keeps, such as a background that competes.
        maps: Scores of all phrases, or with `embeddings` the features that these score.
        embeddings: Of the phrases.
        image: Image of each window.

    Returns:
        The phrase of each column, `NOBODY` behind an image's last, and its scores; anything in unused columns.
    """
    kept = kept_table(classes, count)
    if always is not None:
        kept[:, always] = True
    wanted = kept[:, phrase_class]
    order = np.argsort(~wanted, axis=1, kind="stable")[:, : wanted.sum(1).max()]
    phrases = np.where(np.take_along_axis(wanted, order, 1), order, NOBODY)
    rows = upload({"rows": order}, maps.device)["rows"][image]
    if embeddings is None:
        return phrases, maps.gather(1, rows[..., None].expand(-1, -1, maps.shape[2]))
    return phrases, torch.matmul(embeddings[rows], maps)
