"""From a file to batches: catalog, series, splits, windows, samplers, prompts.

Up to and including ``windows`` nothing here imports torch, so data are checked before it loads.
"""
