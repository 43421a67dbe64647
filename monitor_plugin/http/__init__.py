"""The HTTP side: the application, its resources, what goes over the wire, and the server."""
