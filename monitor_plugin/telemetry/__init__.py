"""The event log, time series and log lines."""
