"""The shipped demo model: its data, training and evaluation.

The model is a demo: about 1.3 M parameters that call four tools (calculator, lookup, remember, recall) and
answer from their results, so that several frameworks can share one model on a fresh machine without a download.
"""
