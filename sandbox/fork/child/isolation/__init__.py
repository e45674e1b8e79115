"""How a session gives up its rights: tiers, namespaces and file tree, Landlock, seccomp, limits."""
