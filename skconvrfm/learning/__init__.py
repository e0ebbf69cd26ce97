"""The algorithm of the paper: rounds, the models they fit, ridges, and checkpoints.

Knows kernels and feature layers; knows nothing of estimators and their parameters.
"""
