"""Many profiles at once: `print(compare_devices(Path("profiles/measured")).markdown())`."""

from edge.report.devices.comparison import DeviceComparison, compare_devices
from edge.report.devices.records import LeftOut
from edge.report.devices.tables import Table, devices_table

__all__ = ["DeviceComparison", "LeftOut", "Table", "compare_devices", "devices_table"]
