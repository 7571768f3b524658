"""What a run stands on: processes, devices, checkpoints, files and the run's log."""
