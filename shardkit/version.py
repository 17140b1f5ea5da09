"""The version of the package. (Of the format: format/layout.py; of a state: order/state.py.)"""

__version__ = "0.1.0"
