"""Strategies that explore: `growing` plays a tree of episodes and a file each says where it forks; EAD heats a turn."""
