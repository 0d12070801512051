pytest_plugins = ["aios_adapters.testing"]
