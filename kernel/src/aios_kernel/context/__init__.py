"""Contexts: where the KV of each open call is, and moving it."""
