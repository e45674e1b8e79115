"""Sandboxes that are Jupyter kernels: on the host under the confinement of `fork`, and what runs inside."""
