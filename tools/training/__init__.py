"""Parts of ``train_zoo.py``. The package's own files are imported by their path, so it need not be built."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "oss_ext" / "zoo"))
