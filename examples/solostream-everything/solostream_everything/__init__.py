"""One of every kind of component, from outside."""
