"""Fixtures for every test of the repository."""

pytest_plugins = ["aios_adapters.testing"]
