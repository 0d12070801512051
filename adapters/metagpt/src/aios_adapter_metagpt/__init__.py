"""The adapter of MetaGPT: roles run on the kernel's model and keep their memory there."""
