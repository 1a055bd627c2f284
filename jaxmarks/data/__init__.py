"""Datasets: formats, folders, phantoms, splits, and `loading.load`, which turns a config into Samples; without JAX."""
