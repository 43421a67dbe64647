"""Single flight, thread pool, periodic task, blocking observer and signals."""
