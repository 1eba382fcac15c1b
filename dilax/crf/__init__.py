"""Structured prediction: Gaussian filters, the dense CRF, and CRF-RNN."""

from dilax.crf.lattice import LatticeFilter, build_lattice, with_lattice

__all__ = ["LatticeFilter", "build_lattice", "with_lattice"]
