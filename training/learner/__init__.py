"""Tensors: packing, log-probabilities, losses over packed batches, optimizers."""
