"""A model for MLServer, which runs it from a folder of its own.

It loads until the file `loaded` exists there, and predicts until the file `predicted` exists.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

FOLDER = Path(__file__).parent


class WaitingModel(MLModel):  # type: ignore[misc]
    """The model."""

    async def load(self) -> bool:
        while not (FOLDER / "loaded").exists():
            await asyncio.sleep(0.02)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (FOLDER / "predicting").touch()
        while not (FOLDER / "predicted").exists():
            await asyncio.sleep(0.02)
        output: Any = ResponseOutput(name="y", shape=[1], datatype="INT32", data=[1])
        return InferenceResponse(model_name=self.name, outputs=[output])
