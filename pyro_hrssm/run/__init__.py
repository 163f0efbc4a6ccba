"""The life of a run: training, its processes and its files."""
