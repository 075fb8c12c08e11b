"""Many engines behind one front: who computes what, and what happens when one of them is lost."""
