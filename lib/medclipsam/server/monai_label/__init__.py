"""MONAI Label adapters: the only package that imports `monailabel`."""

# MONAI Label imports a module that pydicom 3 no longer has, see there.
import medclipsam_compat  # noqa: F401
