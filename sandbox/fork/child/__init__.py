"""What runs on the far side of `exec`: the fork server and its sessions. Standard library only, Python 3.10 or newer.

The folder is put on the path of a fresh interpreter under the name `child`, so imports here are relative and nothing
above this package is loaded into a session.
"""
