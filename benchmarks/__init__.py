"""Benchmarks of skconvrfm.

``python -m benchmarks.accuracy``
    Accuracy of fixed, learned and deep machines, and of features for others.
``python -m benchmarks.ansatz``
    The neural feature ansatz before and after training, and on a network of full size.
``python -m benchmarks.cluster``
    One fit on the backends of joblib: processes, Dask, Ray.
``python -m benchmarks.compare``
    Kernel and AGOP, alternating with a peer in an environment of its own.
``python -m benchmarks.comparison``
    Ours beside xRFM and other machines: the same images, the same budget for all.
``python -m benchmarks.growth``
    How time and memory grow: with images, with the budget, with workers.
``python -m benchmarks.precision``
    What float32 changes beside float64, on real images, round by round.
``python -m benchmarks.published``
    The published experiment on framed MNIST: time, memory and accuracy by round.
``python -m benchmarks.reproduction``
    Published experiments that no other benchmark has, at a laptop's size.
``python -m benchmarks.scale``
    The linear path from 1000 to 256,000 images, and on paper beyond.
``benchmarks/bench_engine.py``
    Small entries in the manner of asv.
"""
