"""The protocols by which backends are asked for their status, besides LocalAI's."""
