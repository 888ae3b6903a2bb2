"""TensorFlow and Keras, imported without the notices that they write about themselves.

That takes seconds, so only modules that use them import this one.
"""

from edge_agent.contract.cli import without_notices

with without_notices():
    import keras
    import tensorflow as tf

__all__ = ["keras", "tf"]
