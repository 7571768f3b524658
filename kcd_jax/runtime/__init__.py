"""Infrastructure of a run: processes, devices, checkpoints, files and logs."""
