"""Does nothing any more: the monitor itself reads NVIDIA's GPUs (setting `gpu`).

The file stays so that a link to it in the folder of the setting `hooks_dir` still loads. Remove it
from that folder.
"""

from __future__ import annotations

import logging

logging.getLogger(__name__).warning(
    "the monitor itself reads NVIDIA's GPUs (setting `gpu`): remove this file, %s, from the folder "
    "of hooks",
    __file__,
)
