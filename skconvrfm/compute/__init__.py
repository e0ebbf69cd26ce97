"""Computation: images, blocks, tiles, workers, devices, compiled code.

Knows no kernel and no method; imports nothing of the package but itself.
"""
