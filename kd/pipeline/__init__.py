"""The notebooks as stages of the pipeline."""

import sys

# jsonschema, which nbformat brings, would build a grammar of internationalised addresses from this package: more than a second of every
# stage, for a check that no notebook needs
sys.modules.setdefault("rfc3987_syntax", None)
