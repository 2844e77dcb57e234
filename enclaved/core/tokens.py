"""Tokens: who may call, as far as a secret shows it."""
