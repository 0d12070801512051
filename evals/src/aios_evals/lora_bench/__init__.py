"""`aios bench lora`: many adapters on one model, beside PEFT's own mixed batches."""
