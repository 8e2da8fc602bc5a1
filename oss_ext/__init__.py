"""Optimal step schedules for diffusion and flow models (OSS, arXiv 2503.21774)."""

from oss_ext.build import build_info

__version__ = build_info()["version"]
__all__ = ["build_info"]
