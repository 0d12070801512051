"""What a user has without the kernel: transformers `generate` behind a lock, or any OpenAI-compatible server."""
