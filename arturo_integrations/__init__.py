"""Thin hooks that make :class:`arturo_core.Arturo` available inside training frameworks.

Nothing is imported here: each framework is imported only by its own module.
"""
