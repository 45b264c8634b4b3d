"""Networks as people have them, with the names of modules that those have.

Written after the public descriptions; what `clsd_fast.accelerate` is tried on.
"""
