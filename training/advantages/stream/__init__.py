"""Parts of a single stream, one file each: how a batch is measured, centred and scaled, and what tasks share.

`SPO` and `ValueTracker` take them as options; without them they are the published methods, but for the few defaults
that docs/algorithms.md names.
"""
