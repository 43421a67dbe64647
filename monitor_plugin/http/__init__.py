"""The HTTP API: the application, its resources and middleware, the page, and the server."""
