"""The faults in JAX."""

from corpora.steps_functional import faults_of


def faults():
    return faults_of("jax")
