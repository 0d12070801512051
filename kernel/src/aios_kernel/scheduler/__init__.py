"""Scheduling policies and the dispatcher that carries their plans out."""
