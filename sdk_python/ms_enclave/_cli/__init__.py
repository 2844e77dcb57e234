"""What the command ``ms-enclave`` is made of. The command line itself is `ms_enclave.cli`."""
