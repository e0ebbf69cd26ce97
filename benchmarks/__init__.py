"""Benchmarks of skconvrfm: ``python -m benchmarks.NAME --help`` tells the options.

=================  ================================================================
``accuracy``       recommended and default machines, by round
``ansatz``         the neural feature ansatz in networks, before and after training
``comparison``     ours beside xRFM and other machines, the same budget for all
``fuzz``           random fits against invariants, and spoilt files
``peers``          time of kernel, AGOP and features beside other implementations
``reproduction``   published experiments
``scale``          whole data sets, with and without landmarks
=================  ================================================================

``asv_suite/`` has small measurements of time and peak memory for asv: run
``asv run --python=same`` in this folder. Folder of the data: ``--data``. Pages of
measurements whose program is gone name the revision that has it.
"""
