"""What a learner can add to the policy's loss, one file each: a band for the entropy, demonstrations to imitate."""
