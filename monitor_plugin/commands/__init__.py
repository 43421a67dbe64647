"""The commands that speak to a running monitor; they need the extra `[cli]`."""
