"""waitress in a thread, with bounds on connections and threads."""
