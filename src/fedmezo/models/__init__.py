"""Language models with adapters: loading a base, attaching PEFT, and the loss as a function of one flat vector."""

import sys

from transformers.utils.import_utils import is_bitsandbytes_available

# PEFT imports bitsandbytes wherever it is installed, which takes a second, and has layers of its own for it; our layers
# and those of quantised checkpoints are linear layers to it. transformers has to find it, and remembers that it can.
if "bitsandbytes" not in sys.modules and is_bitsandbytes_available():
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # as Python marks what cannot be imported
    from peft.import_utils import is_bnb_4bit_available, is_bnb_available

    assert not is_bnb_available()  # which it remembers
    assert not is_bnb_4bit_available()
    del sys.modules["bitsandbytes"]
