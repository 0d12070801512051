"""The engine on a GPU against what the device can do at all: `python -m aios_evals gpu`."""
