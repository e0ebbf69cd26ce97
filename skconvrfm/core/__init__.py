"""The numerics: torch only, without scikit-learn.

Imports point one way, in this order: ``devices``, ``images``,
``convolutional``, ``tiles``, ``agop``, ``ridge``, ``rounds``.
"""
