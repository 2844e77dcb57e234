"""Container engines behind one small seam, `runtime.base.Runtime`."""
