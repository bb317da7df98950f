"""How a client estimates its gradient from losses alone: a family of estimators behind one protocol."""
