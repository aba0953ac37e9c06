"""Installation of the inference package."""

from pathlib import Path

from setuptools import find_packages, setup


setup(
    name="$package",
    version="1.0.0",
    description="Inference package for DCASE 2025 Task 1",
    packages=find_packages(),
    package_data={"$package": ["resources/*", "ckpts/**/*"]},
    install_requires=(Path(__file__).parent / "requirements.txt").read_text(encoding="utf-8").split(),
    python_requires=">=3.11",
)
