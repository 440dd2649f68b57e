"""The process: command line, configuration file, signals, progress and service."""
