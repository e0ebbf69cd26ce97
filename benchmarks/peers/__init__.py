"""Peers that skconvrfm is measured against, each in an environment of its own.

``PEER_peer.py`` runs there, imports nothing of skconvrfm, and answers requests, one a
line of JSON; arrays go through files. ``PEER_requirements.txt`` pins what it needs.
"""
