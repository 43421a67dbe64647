"""The event log, time series, peaks of models and log lines."""
