import warnings

import numpy as np

from ovss_core.transfer import upload


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
