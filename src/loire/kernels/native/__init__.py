"""CPU kernels in C++, optional: compiled at installation where there is a compiler."""
