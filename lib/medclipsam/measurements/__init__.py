"""What masks measure: parts, volume and area, axes, values and place; as a table and as a DICOM structured report."""

from medclipsam.measurements.diameters import Axis, axes, largest_diameter_mm
from medclipsam.measurements.measure import Measurements, Values, measure

__all__ = ["Axis", "Measurements", "Values", "axes", "largest_diameter_mm", "measure"]
