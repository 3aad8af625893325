"""Figures and the HTML report of scaling studies; see the README of `soda_jax.scaling`."""
