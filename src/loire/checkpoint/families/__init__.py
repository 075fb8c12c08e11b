"""Families of models, a file each: how its config.json and its GGUF files are read.

`family.py` says what a family's file has to tell, `registry.py` lists them all. `common.py` holds
what both kinds of file share, `config_fields.py` and `gguf_fields.py` what each of them does.
"""
