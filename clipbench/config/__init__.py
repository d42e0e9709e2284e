"""What a config may hold: options, targets, places, whose code it may name; building; checks of arguments."""
