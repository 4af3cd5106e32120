"""The HTTP floor: everything between a socket and a typed request, and nothing about credits."""
