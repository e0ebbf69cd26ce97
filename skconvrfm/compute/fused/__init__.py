"""Tiles of convolutional kernels on a GPU: one Triton program for all steps of a layer.

Triton comes with the CUDA builds of torch. Only `check.py` decides whether programs are
used, and `tiles.py` imports the others, so that nothing else needs Triton.
"""
