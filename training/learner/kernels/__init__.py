"""What the learner computes in its own way: attention over packs, and what follows the logits."""
