"""What is used of OpenVINO, imported without its telemetry.

The package reports each import and conversion to its makers unless `openvino_telemetry` is missing. A server with
patients' images sends nothing, so it is made to be missing.
"""

from __future__ import annotations

import sys

# None: an import of it raises ImportError, and OpenVINO falls back to a stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

from openvino import Core, convert_model, save_model  # noqa: E402

__all__ = ["Core", "convert_model", "save_model"]
