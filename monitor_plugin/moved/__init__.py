"""The old paths of modules that others import; `monitor_plugin.__path__` has this folder."""
