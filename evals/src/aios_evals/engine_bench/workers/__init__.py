"""One process an engine. `launch` runs under that engine's own interpreter; `loop` needs nothing but Python."""
