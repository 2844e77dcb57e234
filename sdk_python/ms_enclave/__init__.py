"""Python SDK of ms-enclave. The documented names are in `ms_enclave.sandbox`."""

__version__ = "0.2.0"
