"""Delta's app in Python: depth of photos and of the camera, live. Of Delta it knows what predicting needs, no torch."""
