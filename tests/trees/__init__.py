"""Programs that start the processes of a backend as real model servers and their launchers do.

Each is a script with one purpose, which prints `ready` once all its processes run.
"""
