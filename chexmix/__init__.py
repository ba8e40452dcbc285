__version__ = "0.1.0"

from .registration import register

register()  # transformers' Auto classes know the model from now on
