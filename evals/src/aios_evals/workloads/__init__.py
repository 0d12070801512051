"""Recorded work as trajectories that any framework can walk. The data stays outside the project (`AIOS_DATA`)."""
