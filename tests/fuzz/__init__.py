"""Hostile files: whatever lies under a name, its reader accepts it or refuses it by name.

A few hundred files per reader run with the other tests; a campaign runs as many as one likes:

    python -m tests.fuzz.campaign --inputs 5000
"""
