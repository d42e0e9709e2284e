"""The typed options (`schema`) and the checks of constructor arguments (`checks`)."""
