"""From trajectories to gradients: SPO, ASPO, the learner and the pipeline."""
