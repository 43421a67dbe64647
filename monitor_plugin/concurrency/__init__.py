"""Single flight, thread pool, periodic task, signals."""
