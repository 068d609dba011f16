"""Folders and files that want to do harm, made at run time; shared by the tests of every way in."""
