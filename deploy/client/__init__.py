"""The commands for people and scripts: create, append, read, tail, head, close, delete."""
