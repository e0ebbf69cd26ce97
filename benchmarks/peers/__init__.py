"""Other implementations of the same, whose time is measured beside ours.

neural-tangents runs ``neural_tangents_peer.py`` in an environment of its own, which
imports nothing of skconvrfm and answers requests, one a line of JSON; arrays go through
files. ``neural_tangents_requirements.txt`` pins what it needs. kymatio is imported.
"""
