"""Principles written by a language model."""
