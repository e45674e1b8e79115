"""Run folders to pictures: a report in one HTML file, and a local app to browse trajectories."""
