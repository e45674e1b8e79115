"""Curricula: samplers that choose a task, or a form of it, by what came of earlier ones. One file a method."""
