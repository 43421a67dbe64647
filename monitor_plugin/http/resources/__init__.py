"""The Falcon resources, which answer at each route."""
