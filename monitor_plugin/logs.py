"""The JSON formatter of the log, under the path that logging configurations use."""

from .telemetry.log_lines import JsonFormatter

__all__ = ["JsonFormatter"]
