"""The layouts of training sets on disk, each read and written by one module."""
