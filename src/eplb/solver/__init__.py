"""The algorithms, one a module: a short public function, and under it the compiled kernel."""
