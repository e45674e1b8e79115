"""Stages: each stands around an estimator and changes the advantages that it gives, one file each."""
