"""The settings, and the files that they name: tokens and certificates."""
