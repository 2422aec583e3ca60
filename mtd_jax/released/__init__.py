"""Released PyTorch weights: a .pth file or its address comes in, a model or a checkpoint directory goes out.

Read `convert.py` first. `pth.py` reads the file's format, `state_dict.py` cleans up its content, `key_table.py`
has the names on both sides. No code in a file is ever run. PyTorch is needed for files of its older format only.
"""
