"""Runs: folder, checkpoints, progress, export, and the function that runs a federation."""
