"""The log's JSON formatter, by the path that logging configurations name."""

from .telemetry.log_lines import JsonFormatter

__all__ = ["JsonFormatter"]
