"""The teacher cache: what a teacher said about each photo, written once and read fast.

This room knows numpy and zarr. It knows no torch, no network and no command line.
"""
