"""Files of loads: a module for each engine that writes its own, and for each common format."""
