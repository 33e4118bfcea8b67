"""The experiment grid: which runs, run each once, tell what differs beyond the noise of seeds."""
