"""Several worker processes behind one listener."""
