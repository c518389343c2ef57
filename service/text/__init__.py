"""Text at the edge of the engine: tokens to text as they come, and stop strings."""
