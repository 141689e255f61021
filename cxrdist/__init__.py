"""Which way of pretraining a vision backbone is best for reading chest radiographs?"""

__version__ = "0.1.0"
