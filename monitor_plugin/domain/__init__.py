"""Records, errors, model names and addresses."""
