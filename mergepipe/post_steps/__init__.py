"""What may follow a merge, one file each: a method that is given what was merged."""
