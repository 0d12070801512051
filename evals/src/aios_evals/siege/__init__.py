"""Attacks on a real kernel, counted: what leaked, what was done that must not be, what benign work it cost."""
