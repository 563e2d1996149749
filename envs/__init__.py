"""Vectorised environments behind one interface, whatever their autoreset mode."""
