"""Files that appear whole or not at all, on POSIX file systems and object stores."""
