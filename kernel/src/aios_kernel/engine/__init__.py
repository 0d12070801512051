"""Engines: what computes tokens, behind one contract (`protocol`)."""
