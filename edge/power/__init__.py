"""Where watts come from: the meter's protocol, its integration, one file per source."""

# Here, since every command's options name them and the meters take long to import.
SOURCES = ("auto", "powermetrics", "ioreport", "nvml", "rapl", "none")
