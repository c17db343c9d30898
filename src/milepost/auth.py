"""Public tokens: what a user's own page, or anyone else without the secret key, may see and do.

A token is made where the secret key is, on your server, and given to the page. It is valid for a while; another secret key ends all of
them at once. See `docs/tokens.md`.
"""

from milepost.client.auth import (
    Expiry,
    ReadScopes,
    TokenScopes,
    WriteScopes,
    create_batch_trigger_token,
    create_public_token,
    create_trigger_token,
)

__all__ = [
    "Expiry",
    "ReadScopes",
    "TokenScopes",
    "WriteScopes",
    "create_batch_trigger_token",
    "create_public_token",
    "create_trigger_token",
]
