"""The numerics: torch, numpy and scipy, without scikit-learn.

Imports point one way, in this order: ``devices``, ``images``, ``convolutional``,
``compiled``, ``tiles``, ``agop``, ``sampling``, ``ridge``, ``machine``, ``rounds``.
Apart from them stands ``cnfa``, which needs none of the others.
"""
