"""The version of the package, for what plans and pages say of where they come from."""

__version__ = "0.1.0"
