"""Where batches come from: task sampler, environments, collectors, retries, validation."""
