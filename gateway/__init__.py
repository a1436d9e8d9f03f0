"""huiru: one entrance for every customer message."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("huiru")
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0+checkout"
