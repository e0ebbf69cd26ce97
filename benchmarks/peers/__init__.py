"""Peers that skconvrfm is measured against, each in its own environment."""
