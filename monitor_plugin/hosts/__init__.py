"""Adapters to hosts: they register what a host runs, and have the host stop it.

Each folder has an `adapter` (the hooks of the monitor) and a `client` (calls to the host). What the
host runs is the `listener` of supervisord and the `plugin` of circus.
"""
