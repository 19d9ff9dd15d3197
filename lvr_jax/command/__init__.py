"""The programs of tools/ from any folder: one console command, `lvr`, and the flags of those that take a config."""
