"""The commands: each module is one, and its `run(options, say)` is the command as a Python call."""
