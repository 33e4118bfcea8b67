"""Trainings that are killed at random moments, and go on: ``python -m tests.faults.campaign``."""
