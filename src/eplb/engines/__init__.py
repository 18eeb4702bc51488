"""Plug-ins of inference engines: nothing of an engine is imported before the engine asks for it."""
