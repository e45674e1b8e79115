"""Commands of the first hour: what is here, a configuration to edit, a shell that completes."""
