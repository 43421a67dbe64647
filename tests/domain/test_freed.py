"""The memory that shutdowns have given back: sums, and their text."""

from __future__ import annotations

import pytest

from monitor_plugin.domain.freed import add_freed, describe_freed
from monitor_plugin.domain.models import Freed

MIB = 1024**2
GIB = 1024**3


@pytest.mark.parametrize(
    ("parts", "total"),
    [
        ([Freed(memory=1, gpu=2, gpu_left=0, seconds=0.5)],
         Freed(memory=1, gpu=2, gpu_left=0, seconds=0.5)),
        ([Freed(memory=1, gpu=2, gpu_left=0, seconds=0.5),
          Freed(memory=10, gpu=0, gpu_left=5, seconds=0.1)],
         Freed(memory=11, gpu=2, gpu_left=5, seconds=0.5)),
        ([Freed(memory=1, gpu=2, gpu_left=0, seconds=0.5), Freed(memory=10)],
         Freed(memory=11, seconds=0.5)),
        ([Freed(gpu=2, gpu_left=0), Freed(memory=10, gpu_left=0)], Freed(gpu_left=0)),
    ],
    ids=["one", "all known", "no GPU figures of one", "one figure of each"],
)  # fmt: skip
def test_sum_with_an_unknown_part_is_not_known(parts: list[Freed], total: Freed) -> None:
    """The time is that of the last one."""
    assert add_freed(parts) == total
    assert add_freed(parts[::-1]) == total


@pytest.mark.parametrize(
    ("freed", "text"),
    [
        (Freed(memory=256 * MIB, gpu=GIB, gpu_left=0, seconds=0.52),
         "gave back 256 MiB and 1 GiB of GPU memory, 0.5 s after its end"),
        (Freed(memory=256 * MIB, gpu=0, gpu_left=0), "gave back 256 MiB"),
        (Freed(memory=256 * MIB), "gave back 256 MiB"),
        (Freed(gpu=GIB, gpu_left=0, seconds=0.01), "gave back 1 GiB of GPU memory"),
        (Freed(memory=MIB, gpu=GIB, gpu_left=GIB // 2, seconds=5.0),
         "gave back 1 MiB and 1 GiB of GPU memory; "
         "512 MiB of GPU memory was not free 5.0 s after its end"),
        (Freed(memory=MIB, gpu_left=GIB, seconds=5.0),
         "gave back 1 MiB; 1 GiB of GPU memory was not free 5.0 s after its end"),
        (Freed(gpu_left=GIB, seconds=5.0), "1 GiB of GPU memory was not free 5.0 s after its end"),
        (Freed(), ""),
    ],
)  # fmt: skip
def test_text_names_the_known_amounts(freed: Freed, text: str) -> None:
    """Nothing is said of what is 0 or not known."""
    assert describe_freed(freed) == text
