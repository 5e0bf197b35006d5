"""Market data: files and generated worlds in, bars, features and device arrays out."""
