"""Where things are: the checkout, the modules that tests share, and the real data beside the checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
SUPPORT = Path(__file__).parent
REAL_DATA = ROOT.parent / "shared" / "data"
