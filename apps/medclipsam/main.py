"""The app that MONAI Label loads; everything is in `medclipsam.server`.

MONAI Label takes the class that it finds here. It is imported rather than defined, since classes of a file that is
loaded as `main` cannot be pickled.
"""

from medclipsam.server.monai_label.app import MedClipSamApp

__all__ = ["MedClipSamApp"]
