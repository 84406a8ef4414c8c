"""Disks that fail, and files that are damaged.

`layer` makes calls of the file system fail in this process; `drill` runs commands under it and checks what must hold
after each fault; `command` is a real command with a disk that fills up, for the soak. `mutations` changes files.
"""
