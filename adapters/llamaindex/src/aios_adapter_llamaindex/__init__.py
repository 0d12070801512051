"""LlamaIndex under the kernel. Nothing to import here: the plugin host finds the adapter by its entry point."""
