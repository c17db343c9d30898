"""The browser client: one JavaScript module with its types, and the routes that serve them."""
