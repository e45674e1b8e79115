"""vLLM as the engine: in this process, or behind its HTTP server; and what its workers run to take new weights."""
