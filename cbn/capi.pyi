# Nothing for Python: see capi.pxd.
