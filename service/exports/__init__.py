"""A version as files: the bank, a LoRA adapter, or a checkpoint that serves what the version knows."""
