"""Programs for developers; run as modules from the repository: `python -m scripts.demo`."""
