"""Figures of a run and of a forecast, one kind a file; ``style`` holds what they share."""
