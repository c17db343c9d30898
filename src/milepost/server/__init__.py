"""The HTTP server (ASGI): routes from the table of endpoints, authentication, event streams, the dashboard."""
