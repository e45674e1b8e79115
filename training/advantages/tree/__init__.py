"""Advantages that read trees of episodes: stages around an estimator, which judges the leaves. One file each."""
