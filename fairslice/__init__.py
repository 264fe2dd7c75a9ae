"""The `fairslice` command: serves, and finds the commands of the other packages by name."""
