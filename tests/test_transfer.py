import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ovss_core.transfer import await_later, upload


def test_on_a_cpu_only_what_may_not_be_written_to_is_copied() -> None:
    open_table, closed = np.arange(4), np.arange(4)
    closed.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of tensors over memory that is read-only
        sent = upload({"open": open_table, "closed": closed, "pieces": [closed, open_table[:1]]}, "cpu")
    assert sent["open"].data_ptr() == open_table.ctypes.data
    sent["closed"] += 1
    assert closed.tolist() == [0, 1, 2, 3]
    assert sent["pieces"].tolist() == [0, 1, 2, 3, 0]


@pytest.mark.parametrize(("device", "order"), [("cpu", "b0 w0 b1 w1 b2 w2"), ("cuda", "b0 b1 w0 b2 w1 w2")])
def test_a_gpu_is_given_the_next_piece_before_one_is_awaited(device: str, order: str) -> None:
    events = []

    class Piece:
        alive = 0

        def __init__(self, number: int) -> None:
            self.number = number
            Piece.alive += 1
            events.append(f"b{number}")

        def __del__(self) -> None:
            Piece.alive -= 1

        def wait(self) -> int:
            events.append(f"w{self.number}")
            return -self.number

    def begun() -> Iterator[tuple[str, Piece]]:
        for number in range(3):
            assert Piece.alive <= (device != "cpu")  # what was awaited is gone before the next is begun
            yield f"piece {number}", Piece(number)

    found = list(await_later(begun(), torch.device(device)))
    assert found == [("piece 0", 0), ("piece 1", -1), ("piece 2", -2)]
    assert " ".join(events) == order
