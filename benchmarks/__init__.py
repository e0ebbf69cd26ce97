"""Benchmarks of skconvrfm.

``python -m benchmarks.accuracy``
    Accuracy of fixed, learned and deep machines, and of features for others.
``python -m benchmarks.ansatz``
    The neural feature ansatz over the training of networks, and on one of full size.
``python -m benchmarks.ansatz_metric``
    The AGOP of a trained network as a metric of features, beside whitening.
``python -m benchmarks.ansatz_reasons``
    Where the ansatz fails: the reasons, tested.
``python -m benchmarks.cluster``
    One fit under the backends of joblib: processes, Dask, Ray.
``python -m benchmarks.compare``
    Kernel and AGOP, alternating with a peer in an environment of its own.
``python -m benchmarks.comparison``
    Ours beside xRFM and other machines: the same images, the same budget for all.
``python -m benchmarks.devices``
    A GPU beside the processors of its machine.
``python -m benchmarks.features``
    Speed of features, beside torch's own convolution and kymatio's scattering.
``python -m benchmarks.growth``
    Growth of time and memory with images, with the budget, with workers.
``python -m benchmarks.known_networks``
    The ansatz on ResNet-20, SqueezeNet and EfficientNet-Lite0 beside redrawn networks.
``python -m benchmarks.learning``
    Accuracy of features by round of learning, for variants of the first metric.
``python -m benchmarks.natural``
    Metrics of ConvRFM and of a trained network on photographs.
``python -m benchmarks.precision``
    Float32 beside float64, on real images, round by round.
``python -m benchmarks.published``
    The published experiment on framed MNIST: time, memory and accuracy by round.
``python -m benchmarks.reproduction``
    Published experiments that no other benchmark has, at a laptop's size.
``python -m benchmarks.selection``
    Optimism of the criteria that choose ridge and round.
``python -m benchmarks.scale``
    Linear machines on features from 1000 to 256,000 images, and on paper beyond.
``benchmarks/bench_engine.py``
    Small entries in the manner of asv.
"""
