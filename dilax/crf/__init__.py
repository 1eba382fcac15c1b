"""Structured prediction: Gaussian filters, the dense CRF, and CRF-RNN."""

from dilax.crf.dense_crf import DenseCRF
from dilax.crf.filters import ExactFilter, GridFilter, build_filter, gaussian_filter
from dilax.crf.kernels import ImageKernels
from dilax.crf.lattice import LatticeFilter, build_lattice, with_lattice
from dilax.crf.mean_field import CRFRNN, Energy
from dilax.crf.search import CRFGrid, CRFSearch, search_crf

__all__ = [
    "CRFRNN",
    "CRFGrid",
    "CRFSearch",
    "DenseCRF",
    "Energy",
    "ExactFilter",
    "GridFilter",
    "ImageKernels",
    "LatticeFilter",
    "build_filter",
    "build_lattice",
    "gaussian_filter",
    "search_crf",
    "with_lattice",
]
