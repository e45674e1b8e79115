"""The `solostream` command."""
