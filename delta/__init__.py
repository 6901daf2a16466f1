"""Delta's networks and their mathematics: teacher, student, losses, training, export, prediction.

This room knows torch. It knows no zarr, no command line and prints nothing. Importing the package itself is light:
`delta.predict` must start without torch.
"""

__version__ = "0.1.0"
