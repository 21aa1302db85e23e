"""Pure functions on tensors: no models, no input or output, no configuration.

None mutates its arguments; masks are explicit; arithmetic is in float32 at least and float64 stays float64; what
padding holds, NaN included, changes neither a result nor a gradient.
"""
