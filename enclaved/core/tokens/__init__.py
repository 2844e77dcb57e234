"""Tokens: who may call, as far as a secret shows it.

A token is a name with a role, and a secret of which only the digest is kept. `TokenStore` is the file, which the
command ``enclaved token`` changes while a daemon runs; `Tokens` is what that daemon knows of it.
"""

from enclaved.core.tokens.live import Tokens
from enclaved.core.tokens.store import (
    DATABASE_NAME,
    PREFIX,
    TOKENS_MAX,
    Token,
    TokenState,
    TokenStore,
    TokensUnusable,
)

__all__ = [
    "DATABASE_NAME",
    "PREFIX",
    "TOKENS_MAX",
    "Token",
    "TokenState",
    "TokenStore",
    "Tokens",
    "TokensUnusable",
]
