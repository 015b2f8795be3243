"""Activations in FP8: quantise, dequantise, and a context that saves them so for the backward pass."""

from gemkit_kernels.fp8.op import fp8_dequantise, fp8_quantise
from gemkit_kernels.fp8.saved import saved_in_fp8

__all__ = ["fp8_dequantise", "fp8_quantise", "saved_in_fp8"]
