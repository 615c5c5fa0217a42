"""Put the harness on the path of every layer."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
