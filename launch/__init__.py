"""Start scripts and the checks made before a job."""
