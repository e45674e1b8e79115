"""Policies that sample tokens: Hugging Face, vLLM, vLLM servers, chat endpoints, scripts."""
