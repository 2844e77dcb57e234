"""The hostile programs and clients, by category, each with its judge. `suite` has them all."""
