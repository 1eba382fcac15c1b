"""Structured prediction: Gaussian filters, the dense CRF, and CRF-RNN."""

from dilax.crf.crf_rnn import CRFRNN
from dilax.crf.dense_crf import DenseCRF
from dilax.crf.energy import Energy
from dilax.crf.exact import ExactFilter
from dilax.crf.filtering import build_filter, gaussian_filter
from dilax.crf.grid import GridFilter
from dilax.crf.image_kernels import ImageKernels
from dilax.crf.lattice import LatticeFilter, build_lattice, with_lattice

__all__ = [
    "CRFRNN",
    "DenseCRF",
    "Energy",
    "ExactFilter",
    "GridFilter",
    "ImageKernels",
    "LatticeFilter",
    "build_filter",
    "build_lattice",
    "gaussian_filter",
    "with_lattice",
]
