"""Language models with adapters: loading a base, attaching PEFT, and the loss as a function of one flat vector."""
