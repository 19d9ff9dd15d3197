"""The door to files that other people and other programs made: JSON, names, pictures, whole-file writes."""
