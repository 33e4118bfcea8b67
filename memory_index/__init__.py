"""Vectors with ids, sharded; knows arrays, not models. Import from the modules.

Nothing is imported here: ``memory_index.config`` is read before torch is.
"""
