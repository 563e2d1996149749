"""K-FAC for PyTorch as an optimizer of its own: this package imports torch and nothing else of the project."""
