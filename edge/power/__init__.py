"""Power meters: their protocol, the integration of their samples, one file per source."""

# Here, because the options of commands name them and the meters take long to import.
SOURCES = ("auto", "powermetrics", "ioreport", "nvml", "rapl", "none")
