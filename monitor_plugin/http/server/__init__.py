"""Waitress in a thread of its own, with bounds on connections and threads."""
