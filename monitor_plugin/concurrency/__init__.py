"""Single flight, thread pool, periodic task, blocking observer, closing and signals."""
