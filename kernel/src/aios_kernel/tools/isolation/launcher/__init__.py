"""Runs in the fork server, a small interpreter of its own: the standard library only, imported by a path of its own.

The kernel has threads and gigabytes; a fork of it is slow, and what runs between its fork and its exec may hang on a
lock of a thread that is gone. So the kernel forks once, through an exec, and this process forks for each call.
"""
