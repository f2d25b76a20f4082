"""Where watts come from: the meter's protocol, its integration, one file per source."""
