"""Benchmarks of skconvrfm: ``python -m benchmarks.NAME --help`` tells the options.

=================  ================================================================
``accuracy``       recommended machines by round; what chooses their rounds and ridge
``ansatz``         the neural feature ansatz: over training, known networks, reasons
``comparison``     ours beside xRFM and other machines, the same budget for all
``fuzz``           random fits against invariants, and spoilt files
``peers``          time of kernel, AGOP and features beside other implementations
``reproduction``   published experiments
``scale``          whole data sets, landmarks, growth, clusters, unit costs
=================  ================================================================

``asv_suite/`` has small measurements of time and peak memory for asv: run
``asv run --python=same`` in this folder. Folder of the data: ``--data``.
"""
