"""Adds to the wheel, editable or not, the `.pth` file that puts `medclipsam_compat` in place at interpreter start.

Everything else is said in pyproject.toml; setuptools has no setting for a `.pth` file of one's own.
"""

from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.build import build

PTH_NAME = "medclipsam_compat.pth"
PTH_LINE = "import medclipsam_compat\n"


class BuildPth(Command):
    """Write the `.pth` file where the wheel takes its top-level modules from.

    An editable wheel leaves the build folder out, but takes what lies in the installation folder.
    """

    description = "write the .pth file"
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        Path(self._folder()).mkdir(parents=True, exist_ok=True)
        Path(self._folder(), PTH_NAME).write_text(PTH_LINE)

    def _folder(self) -> str:
        return self.get_finalized_command("install").install_lib if self.editable_mode else str(self.build_lib)

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return [str(Path(self._folder(), PTH_NAME))]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    """setuptools' build with one step more."""

    sub_commands: ClassVar = [*build.sub_commands, ("build_pth", None)]


setup(cmdclass={"build": Build, "build_pth": BuildPth})
