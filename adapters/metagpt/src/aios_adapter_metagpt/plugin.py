"""The plugin: which versions and which modules of MetaGPT are hooked."""
