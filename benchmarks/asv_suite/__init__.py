"""The suite of asv, which imports every module of this folder."""
