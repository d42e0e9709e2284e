"""What a config may hold: options, targets and the places they fit, trust, building; checks of constructor arguments."""
