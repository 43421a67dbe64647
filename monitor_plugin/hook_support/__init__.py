"""What hook files build on."""
