"""Other people's trainers with our environments, sandboxes and estimators: one file a trainer."""
