"""One run from its configuration to its summary: trainer, loop, checkpoints, log."""
