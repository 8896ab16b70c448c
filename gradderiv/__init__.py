"""gradderiv."""
