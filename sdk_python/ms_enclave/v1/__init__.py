"""Generated from proto/ms_enclave/v1 by scripts/gen-protos. Do not edit."""
