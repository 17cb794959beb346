"""The embedded reference model: a folder that Hugging Face loaders open, found at `PATH`."""

from pathlib import Path

PATH: Path = Path(__file__).resolve().parent
