"""Compiled code: its build, its checks, its calls, and one source file a stage."""
