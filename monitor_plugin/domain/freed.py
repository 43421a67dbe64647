"""The memory that backends have given back: its sum, and its text for people."""

from __future__ import annotations

from collections.abc import Sequence

from .byte_sizes import format_bytes
from .figures import sum_known
from .models import Freed


def add_freed(parts: Sequence[Freed]) -> Freed:
    """Add up what several backends or nodes have given back.

    A sum is None if one of its parts is not known. `seconds` is the longest time of all parts.
    """
    return Freed(
        memory=sum_known(each.memory for each in parts),
        gpu=sum_known(each.gpu for each in parts),
        gpu_left=sum_known(each.gpu_left for each in parts),
        seconds=max(each.seconds for each in parts),
    )


def describe_freed(freed: Freed) -> str:
    """Return the text for the memory that was given back; "" if no amount is known.

    For example `gave back 256 MiB and 1 GiB of GPU memory, 0.5 s after its end`.
    """
    amounts = [] if freed.memory is None else [_amount(freed.memory)]
    if freed.gpu:
        amounts.append(f"{_amount(freed.gpu)} of GPU memory")
    after = f"{freed.seconds:.1f} s after its end"
    texts = [f"gave back {' and '.join(amounts)}"] if amounts else []
    if freed.gpu_left:
        texts.append(f"{_amount(freed.gpu_left)} of GPU memory was not free {after}")
    elif amounts and freed.gpu and freed.seconds >= 0.05:
        texts[-1] += f", {after}"
    return "; ".join(texts)


def _amount(count: int) -> str:
    return format_bytes(count, ".4g")
