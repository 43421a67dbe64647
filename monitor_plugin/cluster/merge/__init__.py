"""Several nodes' answers merged into one."""
