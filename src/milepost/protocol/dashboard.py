"""Signing in to the dashboard, on the wire."""

import msgspec


class SignInLink(msgspec.Struct, rename="camel"):
    """A link that signs a browser in: a path below the server's address. It works once, for `expiresInSeconds`."""

    path: str
    expires_in_seconds: int
