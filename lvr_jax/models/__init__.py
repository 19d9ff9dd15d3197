"""The networks: a folder a family, what families share, and the interface that they are used through."""
